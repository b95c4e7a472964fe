//! Label and field selectors of lists and watches.

use serde_json::Value;

use super::object::{map, text};
use super::refusal::Refusal;

/// Which objects a list or watch is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    Has(String),
    Lacks(String),
    Label { key: String, value: String, equal: bool },
    Field { pointer: String, value: String, equal: bool },
}

impl Selector {
    /// From `labelSelector` and `fieldSelector` of a request; either may be empty. Set-based
    /// requirements (`in`, `notin`) are not understood.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, Refusal> {
        let mut terms = Vec::new();
        for part in labels.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            terms.push(label(part)?);
        }
        for part in fields.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (path, value, equal) = comparison(part)
                .ok_or_else(|| Refusal::bad_request(format!("bad field selector {part:?}")))?;
            let pointer = format!("/{}", path.replace('.', "/"));
            terms.push(Term::Field { pointer, value: value.to_owned(), equal });
        }
        Ok(Self { terms })
    }

    /// Whether `object` is one of them.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = map(object, "/metadata/labels");
        self.terms.iter().all(|term| match term {
            Term::Has(key) => labels.contains_key(key),
            Term::Lacks(key) => !labels.contains_key(key),
            Term::Label { key, value, equal } => {
                labels.get(key).is_some_and(|found| found == value) == *equal
            }
            Term::Field { pointer, value, equal } => (text(object, pointer) == value) == *equal,
        })
    }
}

fn label(part: &str) -> Result<Term, Refusal> {
    if let Some((key, value, equal)) = comparison(part) {
        return Ok(Term::Label { key: key.to_owned(), value: value.to_owned(), equal });
    }
    if part.contains([' ', '(']) {
        return Err(Refusal::bad_request(format!("label selector {part:?} is not understood")));
    }
    Ok(match part.strip_prefix('!') {
        Some(key) => Term::Lacks(key.to_owned()),
        None => Term::Has(part.to_owned()),
    })
}

fn comparison(part: &str) -> Option<(&str, &str, bool)> {
    if let Some((key, value)) = part.split_once("!=") {
        return Some((key.trim(), value.trim(), false));
    }
    let (key, value) = part.split_once("==").or_else(|| part.split_once('='))?;
    Some((key.trim(), value.trim(), true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_and_fields_select() {
        let pod = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"nodeName": "n"}});
        for (labels, fields, selected) in [
            ("", "", true),
            ("a", "", true),
            ("!a", "", false),
            ("a=1", "spec.nodeName=n", true),
            ("a!=1", "", false),
            ("b!=1", "", true),
            ("", "spec.nodeName!=n", false),
        ] {
            let selector = Selector::parse(labels, fields).unwrap();
            assert_eq!(selector.matches(&pod), selected, "{labels} {fields}");
        }
        assert!(Selector::parse("a in (1,2)", "").is_err());
    }
}
