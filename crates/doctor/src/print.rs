//! Findings for people, and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::finding::{Finding, Verdict};

/// Column of the reasons.
const WIDTH: usize = 18;
/// In the order of the summary.
const VERDICTS: [(Verdict, &str, &str, &str); 5] = [
    (Verdict::Failure, "FAIL", "failure", "failures"),
    (Verdict::Warning, "warn", "warning", "warnings"),
    (Verdict::Unknown, "?", "unknown", "unknown"),
    (Verdict::Note, "note", "note", "notes"),
    (Verdict::Ok, "ok", "ok", "ok"),
];

/// Whether migrations can work, as far as is known.
pub fn passes(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Failure)
}

/// One block for each subject, the worst first, and a summary in the end.
pub fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for (subject, block) in blocks(findings) {
        let _ = writeln!(text, "{subject}");
        for finding in block {
            line(&mut text, finding);
        }
        text.push('\n');
    }
    let _ = writeln!(text, "{}", summary(findings));
    text
}

/// The same as JSON.
pub fn json(findings: &[Finding]) -> Value {
    let counts =
        VERDICTS.map(|(verdict, _, name, _)| (name.to_owned(), json!(count(findings, verdict))));
    json!({
        "version": 1,
        "passes": passes(findings),
        "summary": Value::Object(counts.into_iter().collect()),
        "findings": sorted(findings),
    })
}

fn sorted(findings: &[Finding]) -> Vec<&Finding> {
    blocks(findings).into_iter().flat_map(|(_, block)| block).collect()
}

fn blocks(findings: &[Finding]) -> Vec<(&str, Vec<&Finding>)> {
    let mut blocks: Vec<(&str, Vec<&Finding>)> = Vec::new();
    for finding in findings {
        match blocks.iter_mut().find(|(subject, _)| *subject == finding.subject) {
            Some((_, block)) => block.push(finding),
            None => blocks.push((&finding.subject, vec![finding])),
        }
    }
    for (_, block) in &mut blocks {
        block.sort_by_key(|finding| finding.verdict);
    }
    // Those without a failure stay in their order.
    blocks
        .sort_by_key(|(_, block)| block.iter().all(|finding| finding.verdict != Verdict::Failure));
    blocks
}

fn line(text: &mut String, finding: &Finding) {
    let word = VERDICTS.iter().find(|(verdict, ..)| *verdict == finding.verdict);
    let word = word.map_or("", |(_, word, ..)| word);
    let Finding { check, reason, remedy, .. } = finding;
    let _ = writeln!(text, "  {word:<4}  {check:<WIDTH$}  {reason}");
    if let Some(remedy) = remedy {
        let _ = writeln!(text, "  {:<4}  {:<WIDTH$}  -> {remedy}", "", "");
    }
}

fn summary(findings: &[Finding]) -> String {
    let part = |(verdict, _, one, many): (Verdict, &str, &str, &str)| match count(findings, verdict)
    {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    };
    VERDICTS.map(part).join(", ")
}

fn count(findings: &[Finding], verdict: Verdict) -> usize {
    findings.iter().filter(|finding| finding.verdict == verdict).count()
}
