//! The rules as the API server applies them, on the manifests that the end-to-end test applies to a
//! real one.

use std::fs;
use std::path::{Path, PathBuf};

use kube_cel::Validator;
use serde_json::Value;

use crate::{MessageQueueConfig, StatefulMigration, StatefulMigrationStatus, TransferMode, crd};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn schema() -> Value {
    let crd = serde_json::to_value(crd()).unwrap();
    crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone()
}

fn fixtures(folder: &str) -> Vec<(String, String)> {
    let folder = repository().join("tests/fixtures").join(folder);
    let mut found: Vec<(String, String)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()))
        .collect();
    found.sort();
    assert!(found.len() > 5, "the fixtures are where they are looked for");
    found
}

/// Applies a file's documents one after the other; what the last one is refused with.
fn apply(text: &str) -> Result<(), String> {
    let schema = schema();
    let mut old: Option<Value> = None;
    let mut answer = Ok(());
    for document in text.split("\n---\n") {
        assert_eq!(answer, Ok(()), "only the last document may be refused");
        answer = serde_saphyr::from_str::<StatefulMigration>(document)
            .map_err(|error| error.to_string())
            .and_then(|object| {
                let object = serde_json::to_value(object).unwrap();
                let done = Validator::new().validate(&schema, &object, old.as_ref());
                old = Some(object);
                done.map_err(|errors| errors.to_string())
            });
    }
    answer
}

#[test]
fn good_manifests_are_taken() {
    for (path, text) in fixtures("good") {
        assert_eq!(apply(&text), Ok(()), "{path}");
    }
}

#[test]
fn bad_manifests_are_refused_with_a_sentence() {
    for (path, text) in fixtures("bad") {
        let sentence = text.lines().next().unwrap().trim_start_matches("# ");
        let answer = apply(&text).expect_err(&path);
        // What the schema refuses, the types refuse too, in other words.
        let by_schema = ["Required value", "supported values", "in body should be"];
        if !by_schema.iter().any(|words| sentence.contains(words)) {
            assert!(answer.contains(sentence), "{path}: {answer}");
        }
    }
}

#[test]
fn every_field_either_may_change_or_may_not() {
    let schema = schema();
    let unchanged = schema.pointer("/properties/spec/x-kubernetes-validations/0/rule").unwrap();
    let unchanged = unchanged.as_str().unwrap();
    let fields = schema.pointer("/properties/spec/properties").unwrap().as_object().unwrap();
    for field in fields.keys() {
        let guarded = unchanged.contains(&format!("self.{field} == oldSelf.{field}"));
        let changeable = crate::rules::CHANGEABLE.contains(&field.as_str());
        assert!(guarded != changeable, "{field}");
    }
}

/// Without a length, a rule's cost has no bound and the API server refuses the definition.
#[test]
fn every_text_of_the_spec_has_a_length_and_every_field_a_description() {
    fn walk(path: &str, schema: &Value) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(property["description"].is_string(), "{path} has no description");
            assert!(property["nullable"].is_null(), "{path} takes null");
            if property["type"] == "string" {
                let bounded = property["maxLength"].is_number() || property["enum"].is_array();
                assert!(bounded, "{path} has no maxLength");
            }
            walk(&path, property);
        }
    }
    walk("spec", schema().pointer("/properties/spec").unwrap());
}

#[test]
fn the_quick_start_reads() {
    let text = fs::read_to_string(repository().join("config/samples/migrate-consumer-0.yaml"));
    let text = text.unwrap();
    assert_eq!(apply(&text), Ok(()));
    let object: StatefulMigration = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(object.spec.source_pod, "consumer-0");
    assert_eq!(object.spec.transfer_mode, TransferMode::Registry);
    assert_eq!(object.spec.message_queue_config.unwrap().queue_name, "app.events");
}

#[test]
fn the_committed_definition_is_the_generated_one() {
    let path = repository().join("config/crd/bases/migration.ms2m.io_statefulmigrations.yaml");
    let committed = fs::read_to_string(path).unwrap();
    assert!(committed == crate::crd_yaml().unwrap(), "it is not: run `cargo xtask crds`");
    let read: Value = serde_saphyr::from_str(&committed).unwrap();
    let generated = serde_json::to_value(crd()).unwrap();
    assert_eq!(read["metadata"], generated["metadata"], "the YAML reads back");
    assert_eq!(read["spec"]["names"], generated["spec"]["names"], "the YAML reads back");
}

#[test]
fn a_status_of_another_version_reads() {
    let text = r#"{"phase": "Dreaming", "state": {"x": [1]}, "unheard": {"of": true}}"#;
    let status: StatefulMigrationStatus = serde_json::from_str(text).unwrap();
    assert_eq!(status.phase.as_deref(), Some("Dreaming"));
    let back = serde_json::to_value(&status).unwrap();
    assert_eq!(back, serde_json::json!({"phase": "Dreaming", "state": {"x": [1]}}));
}

#[test]
fn passwords_are_not_shown() {
    let config: MessageQueueConfig = serde_json::from_str(
        r#"{"queueName": "q", "brokerUrl": "amqp://me:s3cr@t@host:5672/v",
            "managementUrl": "http://me:s3cret@host:15672"}"#,
    )
    .unwrap();
    let shown = format!("{config:?}");
    assert!(!shown.contains("s3cr") && !shown.contains("t@"), "{shown}");
    assert!(shown.contains("amqp://***@host:5672/v"), "{shown}");
    assert!(config.has_password());
}
