//! `cargo xtask docs`: the tables and diagrams in the documents are those of the code.
//!
//! What is generated stands between two comments, `<!-- generated: NAME -->` and
//! `<!-- end of generated: NAME -->`; all the rest of a document is somebody's own words. Of those the
//! reasons in docs/operations.md are compared with the code's.

mod reasons;
mod sample;
mod tables;
mod words;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use crate::crds::first_difference;

#[derive(clap::Args)]
pub struct Arguments {
    /// Write nothing; fail if a document differs
    #[arg(long)]
    check: bool,
}

/// A document, and what is generated in it: name and text.
type Document = (&'static str, Vec<(&'static str, String)>);

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut good = true;
    for (file, parts) in documents()? {
        let path = root.join(file);
        let committed = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
        let mut generated = committed.clone();
        for (name, text) in parts {
            generated = replaced(&generated, name, &text)
                .with_context(|| format!("cannot write {name} into {file}"))?;
        }
        if !arguments.check {
            fs::write(&path, generated).with_context(|| format!("cannot write {file}"))?;
        } else if let Some(difference) = first_difference(&committed, &generated) {
            eprintln!("{file} is not what the code says: run `cargo xtask docs`\n{difference}");
            good = false;
        }
    }
    for complaint in reasons::complaints(&root)? {
        eprintln!("{complaint}");
        good = false;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn documents() -> anyhow::Result<[Document; 2]> {
    let mut handoff = tables::steps()?;
    handoff.push(("transitions", tables::transitions()));
    Ok([("ARCHITECTURE.md", vec![("phases", tables::phases())]), ("docs/handoff.md", handoff)])
}

/// `document` with `text` between the marks of `name`.
fn replaced(document: &str, name: &str, text: &str) -> anyhow::Result<String> {
    let (begin, end) =
        (format!("<!-- generated: {name} -->\n"), format!("<!-- end of generated: {name} -->"));
    let marks = (document.matches(&begin).count(), document.matches(&end).count());
    ensure!(
        marks == (1, 1),
        "it must have the lines {begin}and {end} once each, not {marks:?} times"
    );
    let (before, rest) = document.split_once(&begin).context("no beginning")?;
    let (_, after) =
        rest.split_once(&end).with_context(|| format!("{end} stands before {begin}"))?;
    Ok(format!("{before}{begin}{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::replaced;

    const DOCUMENT: &str = "a\n<!-- generated: x -->\nold\n<!-- end of generated: x -->\nb\n";

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let new = replaced(DOCUMENT, "x", "new\n").unwrap();
        assert_eq!(new, DOCUMENT.replace("old", "new"));
        assert_eq!(replaced(&new, "x", "new\n").unwrap(), new, "twice is once");
    }

    #[test]
    fn a_document_without_its_marks_is_not_touched() {
        assert!(replaced(DOCUMENT, "y", "new\n").is_err());
        assert!(replaced(&format!("{DOCUMENT}{DOCUMENT}"), "x", "new\n").is_err());
        let backwards = "<!-- end of generated: x -->\n<!-- generated: x -->\n";
        assert!(replaced(backwards, "x", "new\n").is_err());
    }
}
