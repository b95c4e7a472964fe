//! CRIU and crun on the node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Host, read_if_there};
use crate::facts::{Criu, Crun, Known};
use crate::text::Text;

/// CRIU reads the first always, and the one that its caller names: each runtime has its own.
const FILES: [&str; 3] = ["default.conf", "crun.conf", "runc.conf"];

/// The options in each of CRIU's files.
pub fn options(root: &Path) -> Known<BTreeMap<Text, BTreeSet<Text>>> {
    let mut found = BTreeMap::new();
    for name in FILES {
        if let Some(text) = read_if_there(&root.join("etc/criu").join(name))? {
            found.insert(Text::from(name), names(&text));
        }
    }
    Ok(found)
}

/// One option on a line, with its value; a `#` begins a comment.
fn names(text: &str) -> BTreeSet<Text> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.filter_map(|line| line.split_whitespace().next()).map(Text::from).collect()
}

/// Its version, and whether it is content with the kernel.
pub fn criu(host: &dyn Host) -> Criu {
    let version = host.run(&["criu", "--version"]);
    let check = host.run(&["criu", "check"]).and_then(|output| {
        let output = output.ok_or_else(|| Text::from("criu is not installed on the node"))?;
        Ok((!output.success).then(|| complaint(&output.text)))
    });
    let version = version.map(|output| output.map(|output| Text::from(first_line(&output.text))));
    Criu { version, check }
}

/// crun's version, and whether it can use CRIU.
pub fn crun(host: &dyn Host) -> Known<Option<Crun>> {
    // It makes its folder to tell its version.
    let Some(output) = host.run(&["crun", "--root=/tmp/crun", "--version"])? else {
        return Ok(None);
    };
    if !output.success {
        return Err(Text::from(format!("crun --version: {}", output.text)));
    }
    let criu = output.text.split_whitespace().any(|feature| feature == "+CRIU");
    Ok(Some(Crun { version: Text::from(first_line(&output.text)), criu }))
}

/// CRIU's first error; warnings and consequences are around it.
fn complaint(text: &str) -> Text {
    let error = text.lines().find(|line| line.starts_with("Error"));
    Text::from(error.or_else(|| text.lines().last()).unwrap_or("it says nothing"))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
