//! `cargo xtask check-deps`: dependencies point inward, and `protocol` is pure.
//!
//! ```text
//! shadow (cli) → sim → operator → agent, doctor → broker, checkpoint, api → protocol
//!                                                                 → serde, serde_json, thiserror
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// How far out each of the product's crates is; one may depend only on those further in.
const RINGS: &[(&str, u8)] = &[
    ("shadow-protocol", 0),
    ("shadow-api", 1),
    ("shadow-broker", 1),
    ("shadow-checkpoint", 1),
    ("shadow-agent", 2),
    ("shadow-doctor", 2),
    ("shadow-operator", 3),
    ("shadow-sim", 4),
    ("shadow", 5),
];
/// What may use the product's crates, and is used by none of them.
const OUTSIDE: &[&str] = &["shadow-lab", "shadow-workloads", "shadow-e2e", "xtask"];

const PURE: &str = "shadow-protocol";
/// All that `protocol` may use directly; what these use in turn comes with them.
const PURE_MAY_USE: &[&str] = &["serde", "serde_json", "thiserror"];
/// What must not reach `protocol` by any way.
const IMPURE: &[&str] = &[
    "async-std",
    "chrono",
    "fastrand",
    "futures",
    "getrandom",
    "hyper",
    "jiff",
    "k8s-openapi",
    "kube",
    "lapin",
    "mio",
    "rand",
    "reqwest",
    "rustix",
    "smol",
    "socket2",
    "time",
    "tokio",
];
/// What `protocol`'s own code must not name.
const IMPURE_CODE: &[&str] = &[
    "Instant",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "RandomState",
    "HashMap",
    "HashSet",
];

pub fn run() -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut complaints = check(&Graph::read(&root)?);
    for path in sources(&root.join("crates/protocol/src"))? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        complaints.extend(check_source(&name, &text));
    }
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Normal and build dependencies of all packages, by name.
#[derive(Default)]
struct Graph {
    members: BTreeSet<String>,
    uses: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read(root: &Path) -> anyhow::Result<Self> {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked"])
            .current_dir(root)
            .output()
            .context("cannot run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let metadata = serde_json::from_slice(&output.stdout).context("cargo metadata's answer")?;
        Self::parse(&metadata).context("cargo metadata's answer has another form than expected")
    }

    fn parse(metadata: &Value) -> Option<Self> {
        let mut names = BTreeMap::new();
        for package in metadata["packages"].as_array()? {
            names.insert(package["id"].as_str()?, package["name"].as_str()?);
        }
        let name = |id: &Value| Some((*names.get(id.as_str()?)?).to_owned());
        let mut graph = Self::default();
        for id in metadata["workspace_members"].as_array()? {
            graph.members.insert(name(id)?);
        }
        for node in metadata["resolve"]["nodes"].as_array()? {
            let uses = graph.uses.entry(name(&node["id"])?).or_default();
            for dependency in node["deps"].as_array()? {
                let kinds = dependency["dep_kinds"].as_array()?;
                if kinds.iter().any(|kind| kind["kind"] != "dev") {
                    uses.insert(name(&dependency["pkg"])?);
                }
            }
        }
        Some(graph)
    }

    fn direct(&self, package: &str) -> impl Iterator<Item = &str> {
        self.uses.get(package).into_iter().flatten().map(String::as_str)
    }

    fn reachable<'a>(&'a self, package: &'a str) -> BTreeSet<&'a str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![package];
        while let Some(next) = open.pop() {
            open.extend(self.direct(next).filter(|name| seen.insert(*name)));
        }
        seen
    }
}

fn check(graph: &Graph) -> Vec<String> {
    let mut complaints = Vec::new();
    let ring = |name: &str| RINGS.iter().find(|(known, _)| *known == name).map(|(_, ring)| *ring);
    for member in &graph.members {
        let Some(own) = ring(member) else {
            if !OUTSIDE.contains(&member.as_str()) {
                complaints.push(format!("{member} has no place yet: give it one in check_deps.rs"));
            }
            continue;
        };
        for used in graph.direct(member).filter(|used| graph.members.contains(*used)) {
            if ring(used).is_none_or(|used| used >= own) {
                complaints.push(format!("{member} depends on {used}, which is not further in"));
            }
        }
    }
    for used in graph.direct(PURE).filter(|used| !PURE_MAY_USE.contains(used)) {
        complaints
            .push(format!("{PURE} depends on {used}; it may use {}", PURE_MAY_USE.join(", ")));
    }
    for used in graph.reachable(PURE).intersection(&IMPURE.iter().copied().collect()) {
        complaints.push(format!("{PURE} depends on {used} by way of another crate"));
    }
    complaints
}

fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Reads text, not syntax: so imports from `std` must be written out, one path each.
fn check_source(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        let mut say = |what: &str| complaints.push(format!("{name}:{number}: {what}"));
        if code.contains("use std::{") || code.contains("use std as ") {
            say("write each path from std out, so that this check can see it");
        }
        for word in IMPURE_CODE.iter().filter(|word| mentions(code, word)) {
            say(&format!("{word} is not pure: pass what is needed in from outside"));
        }
    }
    complaints
}

/// Whether `word` stands in `code` by itself, not as a part of a longer name.
fn mentions(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str)]) -> Graph {
        let mut graph = Graph::default();
        graph.members.extend(RINGS.iter().map(|(name, _)| (*name).to_owned()));
        graph.members.extend(OUTSIDE.iter().map(|name| (*name).to_owned()));
        for (from, to) in edges {
            graph.uses.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        graph
    }

    #[test]
    fn inward_is_good() {
        let edges = [
            ("shadow", "shadow-operator"),
            ("shadow-operator", "shadow-broker"),
            ("shadow-operator", "shadow-doctor"),
            ("shadow-doctor", "shadow-checkpoint"),
            ("shadow-broker", "shadow-protocol"),
            ("shadow-broker", "tokio"),
            ("shadow-protocol", "serde"),
            ("xtask", "shadow-lab"),
        ];
        assert_eq!(check(&graph(&edges)), Vec::<String>::new());
    }

    #[test]
    fn outward_and_sideways_are_not() {
        for edge in [
            ("shadow-protocol", "shadow-api"),
            ("shadow-broker", "shadow-checkpoint"),
            ("shadow-operator", "shadow-lab"),
            ("shadow-doctor", "shadow-operator"),
        ] {
            let complaints = check(&graph(&[edge])).join("\n");
            assert!(complaints.contains("not further in"), "{edge:?}: {complaints}");
        }
    }

    #[test]
    fn protocol_gets_nothing_else_directly_or_by_a_detour() {
        assert_eq!(check(&graph(&[("shadow-protocol", "log")])).len(), 1);
        let detour = [("shadow-protocol", "serde"), ("serde", "x"), ("x", "tokio")];
        assert_eq!(check(&graph(&detour)).len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_reported() {
        let mut graph = graph(&[]);
        graph.members.insert("shadow-new".to_owned());
        assert_eq!(check(&graph).len(), 1);
    }

    #[test]
    fn development_dependencies_do_not_count() {
        let metadata = serde_json::json!({
            "packages": [
                {"id": "1", "name": "shadow-protocol"}, {"id": "2", "name": "proptest"},
                {"id": "3", "name": "serde"}
            ],
            "workspace_members": ["1"],
            "resolve": {"nodes": [{"id": "1", "deps": [
                {"pkg": "2", "dep_kinds": [{"kind": "dev"}]},
                {"pkg": "3", "dep_kinds": [{"kind": null}, {"kind": "dev"}]}
            ]}]}
        });
        let graph = Graph::parse(&metadata).unwrap();
        assert_eq!(graph.direct("shadow-protocol").collect::<Vec<_>>(), ["serde"]);
    }

    #[test]
    fn impure_code_is_found_and_longer_names_and_comments_are_not() {
        let bad = ["let t = std::time::Instant::now();", "use std::{fs};", "std::fs::read(p)"];
        for line in bad {
            assert_eq!(check_source("a.rs", line).len(), 1, "{line}");
        }
        let good = ["// an Instant in a comment", "let instance = Instantly;", "BTreeMap::new()"];
        for line in good {
            assert!(check_source("a.rs", line).is_empty(), "{line}");
        }
    }
}
