//! CRIU, its options, and crun.

use std::collections::{BTreeMap, BTreeSet};

use super::reported;
use crate::facts::{Crun, Node};
use crate::finding::{Finding, Question};
use crate::text::Text;
use crate::version::Version;

type Options = BTreeMap<Text, BTreeSet<Text>>;

/// CRI-O asks for it.
const CRIU: Version = Version(3, 16, 0);
/// libcriu can name a file from here on (checkpoint-restore/criu#2777, containers/crun#1892).
const CRIU_TAKES_A_FILE: Version = Version(4, 2, 0);
/// CRI-O runs containers with crun by default from here.
const CRUN_DEFAULT: Version = Version(1, 31, 0);
/// A container that was restored can be checkpointed again.
const CRUN: Version = Version(1, 21, 0);

pub fn check(subject: &str, node: &Node) -> Vec<Finding> {
    let criu = Question { check: "criu", subject };
    let healthy = Question { check: "criu-check", subject };
    let options = Question { check: "criu-options", subject };
    let runtime = runtime(node);
    let known = reported(node, |report| &report.criu.version).ok();
    let known = known.and_then(|said| Version::find(said.as_ref()?.as_str()));
    let mut findings = vec![
        super::answer(criu, reported(node, |report| &report.criu.version), |said| {
            version(criu, said.as_ref())
        }),
        super::answer(healthy, reported(node, |report| &report.criu.check), |said| {
            checked(healthy, said.as_ref())
        }),
        super::answer(options, reported(node, |report| &report.options), |found| {
            connections(options, found, &runtime, known)
        }),
    ];
    if runtime == "crun" {
        let question = Question { check: "crun", subject };
        let crun = reported(node, |report| &report.crun);
        findings.push(super::answer(question, crun, |crun| check_crun(question, crun.as_ref())));
    }
    findings
}

/// The runtime that containers run with by default.
fn runtime(node: &Node) -> String {
    let is_crio = node.runtime.as_str().starts_with("cri-o://");
    let crio = reported(node, |report| &report.crio).ok();
    let given = crio.filter(|_| is_crio).and_then(|crio| crio.runtime.as_ref());
    let crun = is_crio && Version::find(node.runtime.as_str()) >= Some(CRUN_DEFAULT);
    let default = if crun { "crun" } else { "runc" };
    given.map_or(default.to_owned(), Text::to_string)
}

fn version(question: Question<'_>, said: Option<&Text>) -> Finding {
    let remedy = format!("install CRIU {CRIU} or later on the node");
    let Some(said) = said else {
        return question.failure("CRIU is not installed on the node", remedy);
    };
    match Version::find(said.as_str()) {
        Some(version) if version >= CRIU => question.ok(format!("CRIU {version}")),
        Some(version) => {
            question.failure(format!("CRIU {version} is older than CRI-O asks for"), remedy)
        }
        None => question
            .unknown(&Text::from(format!("criu --version says {said:?}", said = said.as_str()))),
    }
}

fn checked(question: Question<'_>, complaint: Option<&Text>) -> Finding {
    match complaint {
        None => question.ok("criu check is content"),
        Some(complaint) => question.failure(
            format!("criu check is not content: {complaint}"),
            "run criu check on the node; it needs another kernel, or a newer CRIU for this one",
        ),
    }
}

/// What makes a dump with open connections work.
fn connections(
    question: Question<'_>,
    found: &Options,
    runtime: &str,
    criu: Option<Version>,
) -> Finding {
    let files = files(found, runtime, criu);
    let has = |option: &str| {
        let options =
            files.iter().filter_map(|file| found.get(&Text::from(file.as_str()))).flatten();
        options.map(Text::as_str).any(|given| given == option)
    };
    let place = format!("/etc/criu/{}", files.join(" and /etc/criu/"));
    let add =
        |option: &str| format!("add the line {option} to /etc/criu/{}", files[files.len() - 1]);
    if !has("tcp-close") {
        let kept = if has("tcp-established") {
            "tcp-established keeps connections, but the copy has another address and can't have them"
        } else {
            "CRIU refuses a process with an open connection, as to a broker"
        };
        return question
            .failure(format!("tcp-close is missing in {place}: {kept}"), add("tcp-close"));
    }
    if !has("skip-in-flight") {
        return question.warning(
            format!(
                "skip-in-flight is missing in {place}: a connection that waits to be accepted fails the \
                 dump"
            ),
            add("skip-in-flight"),
        );
    }
    question.ok(format!("tcp-close and skip-in-flight are set in {place}"))
}

/// The files that count. CRIU reads its own always; it takes another one from crun from 4.2 on, which
/// is runc's where crun has none.
fn files(found: &Options, runtime: &str, criu: Option<Version>) -> Vec<String> {
    let mut files = vec!["default.conf".to_owned()];
    let own = format!("{runtime}.conf");
    if runtime != "crun" || found.contains_key(&Text::from(own.as_str())) {
        files.push(own);
    } else {
        files.push("runc.conf".to_owned());
    }
    if runtime == "crun" && criu.is_some_and(|criu| criu < CRIU_TAKES_A_FILE) {
        files.truncate(1);
    }
    files
}

fn check_crun(question: Question<'_>, crun: Option<&Crun>) -> Finding {
    let remedy = format!("install crun {CRUN} or later, built with CRIU, on the node");
    let Some(crun) = crun else {
        let why = "crun was not found where the node's programs are usually, and not asked";
        return question.unknown(&Text::from(why));
    };
    match Version::find(crun.version.as_str()) {
        _ if !crun.criu => {
            question.failure(format!("{} was built without CRIU", crun.version), remedy)
        }
        Some(version) if version >= CRUN => question.ok(format!("crun {version}")),
        Some(version) => question.warning(
            format!("crun {version} can't checkpoint a container again that was restored"),
            remedy,
        ),
        None => question.unknown(&Text::from(format!("crun --version says {}", crun.version))),
    }
}
