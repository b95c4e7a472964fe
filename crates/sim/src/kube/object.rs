//! Reading and writing fields of objects, which are plain JSON here.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

/// The empty map, for objects that lack one.
static NOTHING: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// Whether the JSON number, string or array under `pointer` is there and not null.
pub fn has(object: &Value, pointer: &str) -> bool {
    object.pointer(pointer).is_some_and(|value| !value.is_null())
}

/// The text under `pointer`; empty when there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number under `pointer`.
pub fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

/// The list under `pointer`; empty when there is none.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The map under `pointer`; empty when there is none.
pub fn map<'a>(object: &'a Value, pointer: &str) -> &'a Map<String, Value> {
    object.pointer(pointer).and_then(Value::as_object).unwrap_or(&NOTHING)
}

/// The object's name.
pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// The object's namespace; empty when it has none.
pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// The object's UID.
pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// Whether somebody asked for its deletion.
pub fn terminating(object: &Value) -> bool {
    has(object, "/metadata/deletionTimestamp")
}

/// The UID of the owner that controls it.
pub fn controller(object: &Value) -> Option<&str> {
    let owners = list(object, "/metadata/ownerReferences");
    owners.iter().find(|owner| owner["controller"] == true).map(|owner| text(owner, "/uid"))
}

/// Whether the condition `kind` holds.
pub fn condition(object: &Value, kind: &str) -> bool {
    let conditions = list(object, "/status/conditions");
    conditions.iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// Sets the condition `kind`; its time of transition changes with its status only.
pub fn set_condition(object: &mut Value, kind: &str, holds: bool, reason: &str, now: &str) {
    let status = if holds { "True" } else { "False" };
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else { return };
    let mut new = json!({ "type": kind, "status": status, "lastTransitionTime": now });
    if !reason.is_empty() {
        new["reason"] = json!(reason);
    }
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(old) if old["status"] == status => {}
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

/// A reference that makes `owner` the controller of what carries it.
pub fn controlled_by(owner: &Value) -> Value {
    json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"],
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// Whether `labels` are those that `selector` (`matchLabels` only) asks for. An empty one selects
/// nothing.
pub fn selects(selector: &Value, labels: &Map<String, Value>) -> bool {
    let wanted = map(selector, "/matchLabels");
    !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
