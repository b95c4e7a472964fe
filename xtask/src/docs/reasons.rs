//! Every reason with which a migration fails, or says something, has an entry in docs/operations.md.
//!
//! In the code a reason is a string literal of one capitalised word, wherever it stands. So are some
//! words that are not ours: those are listed here, and nothing else is passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use proc_macro2::{TokenStream, TokenTree};

const DOCUMENT: &str = "docs/operations.md";
/// The document's parts that have the entries, each up to the next of its rank.
const PARTS: [&str; 2] = ["## When a migration fails", "## The janitor"];
/// Whatever reaches a migration's status or events goes through these.
const CRATES: [&str; 2] = ["crates/protocol/src", "crates/operator/src"];

/// Kinds, states and choices of Kubernetes and of our API, which are the reason of nothing.
const OTHERS: &[&str] = &[
    "AlreadyExists",
    "Always",
    "ContainersReady",
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "Delete",
    "Deny",
    "Deployment",
    "Directory",
    "DoesNotExist",
    "Equal",
    "ErrImageNeverPull",
    "Exists",
    "Fail",
    "Failed",
    "FailureTarget",
    "False",
    "File",
    "Forbidden",
    "IfNotPresent",
    "ImagePullBackOff",
    "InvalidImageName",
    "Job",
    "Migrate",
    "Never",
    "None",
    "NotFound",
    "NotIn",
    "NotRequired",
    "OnFailure",
    "Park",
    "PodTemplate",
    "PreferNoSchedule",
    "ReadOnlyMany",
    "ReadWriteMany",
    "Ready",
    "ReplicaSet",
    "RunContainerError",
    "Running",
    "RuntimeDefault",
    "Sequential",
    "ShadowPod",
    "StatefulMigration",
    "StatefulSet",
    "Succeeded",
    "True",
    "Unimplemented",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// What of the document is not so in the code, and the other way round.
pub fn complaints(root: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(root.join(DOCUMENT))
        .with_context(|| format!("cannot read {DOCUMENT}"))?;
    Ok(compare(&words_of_code(root)?, &entries(&text)?))
}

/// By word, a file that has it.
type Words = BTreeMap<String, String>;

fn compare(code: &Words, entries: &BTreeSet<String>) -> Vec<String> {
    let others: BTreeSet<&str> = OTHERS.iter().copied().collect();
    let missing =
        code.iter().filter(|(word, _)| !entries.contains(*word) && !others.contains(word.as_str()));
    let missing = missing.map(|(word, file)| {
        format!(
            "{file} says {word:?}: if that is a reason, {DOCUMENT} needs an entry for it under {:?}; \
             if not, list it in xtask/src/docs/reasons.rs",
            PARTS[0]
        )
    });
    let unknown = entries.iter().filter(|entry| !code.contains_key(*entry));
    let unknown = unknown
        .map(|entry| format!("{DOCUMENT} has an entry for {entry}, which no code says; remove it"));
    let both = entries.iter().filter(|entry| others.contains(entry.as_str()));
    let both =
        both.map(|word| format!("{word} has an entry in {DOCUMENT} and is listed as no reason"));
    let stale = OTHERS.iter().filter(|word| !code.contains_key(**word));
    let stale =
        stale.map(|word| format!("xtask/src/docs/reasons.rs lists {word}, which no code says"));
    missing.chain(unknown).chain(both).chain(stale).collect()
}

/// The words in the first cells of the parts' tables.
fn entries(document: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for heading in PARTS {
        let (_, part) = document
            .split_once(&format!("\n{heading}\n"))
            .with_context(|| format!("{DOCUMENT} has no {heading:?}"))?;
        let part = part.split_once("\n## ").map_or(part, |(part, _)| part);
        let cells = part.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |"));
        let words = cells.flat_map(|(cell, _)| cell.split('`').skip(1).step_by(2));
        found.extend(words.filter(|word| is_word(word)).map(str::to_owned));
    }
    Ok(found)
}

/// `ApiRefused`, `Aborted`.
fn is_word(text: &str) -> bool {
    text.len() > 2
        && text.starts_with(|first: char| first.is_ascii_uppercase())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric())
        && text.chars().any(|letter| letter.is_ascii_lowercase())
}

fn words_of_code(root: &Path) -> anyhow::Result<Words> {
    let mut words = Words::new();
    for folder in CRATES {
        for path in sources(&root.join(folder))? {
            let file = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
            let tokens: TokenStream =
                text.parse().map_err(|error| anyhow!("cannot understand {file}: {error}"))?;
            let mut found = BTreeSet::new();
            collect(tokens, &mut found);
            words.extend(found.into_iter().map(|word| (word, file.clone())));
        }
    }
    Ok(words)
}

/// All files but those of tests.
fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let unread = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(unread)? {
        let path = entry.with_context(unread)?.path();
        let is = |wanted: &str| path.file_stem().is_some_and(|stem| stem == wanted);
        if is("tests") {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn collect(tokens: TokenStream, found: &mut BTreeSet<String>) {
    let mut tokens = tokens.into_iter().peekable();
    let mut test = false;
    while let Some(token) = tokens.next() {
        match token {
            // An attribute: what is for tests only is no word of the program, up to the end of its item.
            TokenTree::Punct(mark) if mark.as_char() == '#' => {
                if let Some(TokenTree::Group(attribute)) = tokens.peek() {
                    test |= attribute.stream().to_string().replace(' ', "") == "cfg(test)";
                    tokens.next();
                }
            }
            TokenTree::Punct(mark) if mark.as_char() == ';' => test = false,
            TokenTree::Group(group) => {
                let whole = group.delimiter() == proc_macro2::Delimiter::Brace;
                if !test {
                    collect(group.stream(), found);
                }
                test &= !whole;
            }
            TokenTree::Literal(literal) => {
                let string = literal.to_string();
                let word = string.strip_prefix('"').and_then(|string| string.strip_suffix('"'));
                found.extend(word.filter(|word| !test && is_word(word)).map(str::to_owned));
            }
            TokenTree::Punct(_) | TokenTree::Ident(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(code: &str) -> Vec<String> {
        let mut found = BTreeSet::new();
        collect(code.parse().unwrap(), &mut found);
        found.into_iter().collect()
    }

    #[test]
    fn the_document_has_the_reasons_of_the_code() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        assert_eq!(complaints(&root).unwrap(), Vec::<String>::new());
        let code = words_of_code(&root).unwrap();
        for known in ["SourceLost", "BrokerUnreachable", "PreflightFailed", "NotPinned"] {
            assert!(code.contains_key(known), "{known}");
        }
    }

    #[test]
    fn words_are_found_wherever_they_stand_but_in_tests_and_comments() {
        let code = r#"
            // "InComment"
            fn f() { no("Refused", "It is not so"); match x { A => ("AsTuple", true) } }
            #[cfg(test)] mod tests { fn g() { no("InTest") } }
            #[derive(Debug)] struct S;
            #[cfg(test)] mod more;
            const C: &str = "AfterTests";
            json!({ "reason": "InMacro" });
        "#;
        assert_eq!(words(code), ["AfterTests", "AsTuple", "InMacro", "Refused"]);
    }

    #[test]
    fn what_is_missing_on_either_side_is_said() {
        let document = "x\n## When a migration fails\n\n| reason | meaning |\n|---|---|\n\
                        | `Known`, `Gone` | the `Other` |\n\n## Next\n| `NotHere` | x |\n\n\
                        ## The janitor\n| `Tidied` | x |\n";
        let entries = entries(document).unwrap();
        assert_eq!(entries.iter().collect::<Vec<_>>(), ["Gone", "Known", "Tidied"]);
        let code =
            ["Known", "NewReason", "Tidied"].map(|word| (word.to_owned(), "a.rs".to_owned()));
        let said = compare(&code.into(), &entries).join("\n");
        for words in ["a.rs says \"NewReason\"", "an entry for Gone"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(!said.contains("Known"), "{said}");
    }
}
