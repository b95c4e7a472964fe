//! Settings of the container runtimes, from their files. What is given on a runtime's command line is not
//! seen.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};

use super::{read, read_if_there};
use crate::facts::{Containerd, Crio, Known};
use crate::text::Text;

/// CRI-O's default.
const POLICIES: &str = "/etc/crio/policies";
/// containerd's CRI plugin, by the version of the file.
const PLUGINS: [&str; 2] = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"];

/// CRI-O reads its file, then the others in the order of their names; the last word counts.
pub fn crio(root: &Path) -> Known<Crio> {
    let mut crio = Crio::default();
    let mut policies = POLICIES.to_owned();
    let first = root.join("etc/crio/crio.conf");
    for file in std::iter::once(first).chain(drop_ins(&root.join("etc/crio/crio.conf.d"))?) {
        let Some(text) = read_if_there(&file)? else { continue };
        let document = parse(&text, &file)?;
        let value = |path: &[&str]| at(document.as_item(), path);
        let text = |path: &[&str]| value(path).and_then(Item::as_str).map(Text::from);
        crio.criu = value(&["crio", "runtime", "enable_criu_support"])
            .and_then(Item::as_bool)
            .or(crio.criu);
        let level = text(&["crio", "checkpoint_restore", "container_level_enabled"]);
        crio.level = level.or(crio.level);
        crio.policy = text(&["crio", "image", "signature_policy"]).or(crio.policy);
        crio.runtime = text(&["crio", "runtime", "default_runtime"]).or(crio.runtime);
        crio.root = text(&["crio", "root"]).or(crio.root);
        if let Some(folder) = value(&["crio", "image", "signature_policy_dir"]) {
            folder.as_str().unwrap_or_default().clone_into(&mut policies);
        }
    }
    crio.policies = namespaces(&root.join(policies.trim_start_matches('/')));
    // What is set to nothing has the default, too.
    for given in [&mut crio.policy, &mut crio.runtime, &mut crio.root] {
        *given = given.take().filter(|text| !text.as_str().is_empty());
    }
    Ok(crio)
}

fn drop_ins(folder: &Path) -> Known<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder)
        .map_err(|error| Text::from(format!("list {}: {error}", folder.display())))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// A namespace's policy is in a file of its name.
fn namespaces(folder: &Path) -> BTreeSet<Text> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_suffix(".json").map(Text::from)).collect()
}

/// containerd's settings; files that it imports are not seen.
pub fn containerd(root: &Path) -> Known<Containerd> {
    let file = root.join("etc/containerd/config.toml");
    if !file.exists() {
        return Ok(Containerd::default());
    }
    let document = parse(&read(&file)?, &file)?;
    let restores = |plugin: &&str| {
        let path = ["plugins", plugin, "enable_experimental_restore_via_create"];
        at(document.as_item(), &path).and_then(Item::as_bool) == Some(true)
    };
    Ok(Containerd { restore: PLUGINS.iter().any(restores) })
}

fn parse(text: &str, file: &Path) -> Known<DocumentMut> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        Text::from(format!("{} is not TOML: {}", file.display(), error.message()))
    })
}

fn at<'a>(item: &'a Item, path: &[&str]) -> Option<&'a Item> {
    path.iter().try_fold(item, |item, key| item.get(*key))
}
