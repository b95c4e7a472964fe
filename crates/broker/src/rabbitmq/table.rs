//! Arguments: AMQP tables on the wire, JSON in the management API.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde_json::{Map, Value};
use shadow_protocol::broker::Arguments;

use crate::Error;

/// Text with at most 255 bytes, as AMQP names are.
pub(super) fn name(text: &str) -> Result<ShortString, Error> {
    ShortString::try_new(text).map_err(|_| Error::Invalid {
        what: format!("the name {text:?}"),
        why: "a broker's names have at most 255 bytes".to_owned(),
    })
}

/// Canonical text of arguments: keys sorted on every level, nothing for no arguments.
pub(super) fn canonical(arguments: &Arguments) -> String {
    if arguments.is_empty() {
        return String::new();
    }
    let sorted: Map<_, _> =
        arguments.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
    Value::Object(sorted).to_string()
}

/// `serde_json` keeps keys in order of insertion when any crate in the build asks for it.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<_, _> = map.iter().collect();
            Value::Object(ordered.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// The table for a binding's canonical text.
pub(super) fn from_canonical(text: &str) -> Result<FieldTable, Error> {
    if text.is_empty() {
        return Ok(FieldTable::default());
    }
    let arguments: Arguments = serde_json::from_str(text).map_err(|error| Error::Invalid {
        what: "a binding's recorded arguments".to_owned(),
        why: error.to_string(),
    })?;
    table(&arguments)
}

/// The AMQP table for arguments the management API printed. JSON does not tell 32 from 64 bit
/// integers; the shorter type is what most clients send, and what misses is removed through the
/// management API instead (see `topology`).
pub(super) fn table(arguments: &Arguments) -> Result<FieldTable, Error> {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        table.insert(name(key)?, amqp(value)?);
    }
    Ok(table)
}

fn amqp(value: &Value) -> Result<AMQPValue, Error> {
    Ok(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Number(number) => match number.as_i64() {
            Some(long) => {
                i32::try_from(long).map_or(AMQPValue::LongLongInt(long), AMQPValue::LongInt)
            }
            None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => AMQPValue::LongString(LongString::from(text.as_str())),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(amqp).collect::<Result<_, _>>()?;
            AMQPValue::FieldArray(items.into())
        }
        Value::Object(map) => {
            let map: Arguments = map.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            AMQPValue::FieldTable(table(&map)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text_is_sorted_and_comes_back() {
        let text = r#"{"b":{"z":1,"a":[true,null]},"a":"x"}"#;
        let arguments: Arguments = serde_json::from_str(text).unwrap();
        let canonical = canonical(&arguments);
        assert_eq!(canonical, r#"{"a":"x","b":{"a":[true,null],"z":1}}"#);
        assert_eq!(from_canonical(&canonical).unwrap(), table(&arguments).unwrap());
        assert_eq!(from_canonical("").unwrap(), FieldTable::default());
    }

    #[test]
    fn integers_take_the_shortest_common_type() {
        assert_eq!(amqp(&Value::from(7)).unwrap(), AMQPValue::LongInt(7));
        assert_eq!(amqp(&Value::from(1_i64 << 40)).unwrap(), AMQPValue::LongLongInt(1 << 40));
        assert_eq!(amqp(&Value::from(0.5)).unwrap(), AMQPValue::Double(0.5));
    }

    #[test]
    fn a_name_too_long_is_an_error() {
        assert!(name(&"x".repeat(255)).is_ok());
        assert!(name(&"x".repeat(256)).is_err());
    }
}
