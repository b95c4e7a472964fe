//! `cargo xtask crds`: the committed resource definitions are those of the code.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

const FILE: &str = "config/crd/bases/migration.ms2m.io_statefulmigrations.yaml";

#[derive(clap::Args)]
pub struct Arguments {
    /// Write nothing; fail if the committed file differs
    #[arg(long)]
    check: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FILE);
    let generated = shadow_api::crd_yaml().context("cannot write the definition as YAML")?;
    if !arguments.check {
        fs::write(&path, generated).with_context(|| format!("cannot write {FILE}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let committed = fs::read_to_string(&path).with_context(|| format!("cannot read {FILE}"))?;
    let Some(difference) = first_difference(&committed, &generated) else {
        return Ok(ExitCode::SUCCESS);
    };
    eprintln!("{FILE} is not what crates/api says: run `cargo xtask crds`\n{difference}");
    Ok(ExitCode::FAILURE)
}

/// The first line in which two texts differ.
pub(crate) fn first_difference(committed: &str, generated: &str) -> Option<String> {
    if committed == generated {
        return None;
    }
    let (mut left, mut right) = (committed.lines(), generated.lines());
    for number in 1.. {
        match (left.next(), right.next()) {
            (None, None) => break,
            (old, new) if old == new => {}
            (old, new) => {
                let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
                return Some(format!("line {number}:\n- {old}\n+ {new}"));
            }
        }
    }
    Some("the line ends differ".to_owned())
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn the_first_differing_line_is_shown() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n").unwrap(), "line 2:\n- b\n+ c");
        assert_eq!(first_difference("a\n", "a\nb\n").unwrap(), "line 2:\n- \n+ b");
        assert_eq!(first_difference("a\r\n", "a\n").unwrap(), "the line ends differ");
    }
}
