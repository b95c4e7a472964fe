//! JSON merge patch (RFC 7386) and the part of Kubernetes' strategic merge that changes lists.

use serde_json::Value;

/// How a patch is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `application/merge-patch+json`: a list takes the place of a list.
    Merge,
    /// `application/strategic-merge-patch+json`: lists with a key are merged by it.
    Strategic,
    /// `application/apply-patch+yaml`: as [`Style::Merge`], and creates what is not there.
    Apply,
}

/// Lists that strategic merge does not replace, and the key of their entries.
const KEYED: [(&str, &str); 8] = [
    ("conditions", "type"),
    ("containers", "name"),
    ("env", "name"),
    ("initContainers", "name"),
    ("ownerReferences", "uid"),
    ("readinessGates", "conditionType"),
    ("taints", "key"),
    ("volumes", "name"),
];

/// Merges `patch` into `target`.
pub fn merge(target: &mut Value, patch: &Value, style: Style) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            field(target.entry(key.clone()).or_insert(Value::Null), key, value, style);
        }
    }
}

fn field(target: &mut Value, name: &str, patch: &Value, style: Style) {
    let keyed = KEYED.iter().find(|(list, _)| *list == name).filter(|_| style == Style::Strategic);
    match (keyed, patch) {
        (Some((_, key)), Value::Array(entries)) => merge_list(target, entries, key),
        (None, Value::Array(entries)) if name == "finalizers" && style == Style::Strategic => {
            add_missing(target, entries);
        }
        _ => merge(target, patch, style),
    }
}

fn merge_list(target: &mut Value, entries: &[Value], key: &str) {
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(target) = target else { return };
    for entry in entries {
        let found = target.iter().position(|old| old[key] == entry[key]);
        match (found, entry["$patch"] == "delete") {
            (Some(at), true) => {
                target.remove(at);
            }
            (Some(at), false) => merge(&mut target[at], entry, Style::Strategic),
            (None, true) => {}
            (None, false) => target.push(entry.clone()),
        }
    }
}

fn add_missing(target: &mut Value, entries: &[Value]) {
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(target) = target else { return };
    for entry in entries {
        if !target.contains(entry) {
            target.push(entry.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_merge_patch_removes_by_null_and_replaces_lists() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "list": [1, 2]});
        merge(&mut object, &json!({"a": {"b": null, "d": 3}, "list": [3]}), Style::Merge);
        assert_eq!(object, json!({"a": {"c": 2, "d": 3}, "list": [3]}));
    }

    #[test]
    fn a_strategic_patch_merges_conditions_by_type() {
        let mut object = json!({"status": {"conditions": [
            {"type": "Ready", "status": "False", "reason": "x"}, {"type": "Other", "status": "True"}]}});
        let patch = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "New", "status": "True"}]}});
        merge(&mut object, &patch, Style::Strategic);
        assert_eq!(
            object["status"]["conditions"],
            json!([{"type": "Ready", "status": "True", "reason": "x"},
                {"type": "Other", "status": "True"}, {"type": "New", "status": "True"}])
        );
    }
}
