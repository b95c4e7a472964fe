//! `ValidatingAdmissionPolicy` objects: who may create which pod.
//!
//! Expressions are understood in the two forms that the operator writes; any other is refused
//! loudly, so that nothing passes by accident. The real API server evaluates them in the
//! end-to-end tests.

use std::collections::BTreeMap;

use serde_json::Value;
use shadow_protocol::time::Time;

use super::object::{list, map, name, text};
use super::refusal::Refusal;
use super::store::{Key, Store};

/// The API server heeds a policy, or its end, so many milliseconds after it is stored.
const HEED: u64 = 100;

/// What the API server has heard of so far: the bindings' policies, and when it heeds a change.
#[derive(Default)]
pub struct Policies {
    heeded: BTreeMap<String, Value>,
    due: Option<Time>,
}

impl Policies {
    /// Hears of changes; returns when they count.
    pub fn tick(&mut self, store: &Store, now: Time) -> Option<Time> {
        let stored = bound(store);
        if stored == self.heeded {
            self.due = None;
            return None;
        }
        let due = *self.due.get_or_insert(Time(now.0 + HEED));
        if now < due {
            return Some(due);
        }
        self.heeded = stored;
        self.due = None;
        None
    }

    /// Lets an object pass that is to be created, or says who denies it.
    pub fn admit(&self, plural: &str, namespace: &str, object: &Value) -> Result<(), Refusal> {
        let denies = |policy: &&Value| matches(policy, plural, namespace, object);
        for policy in self.heeded.values().filter(denies) {
            let validation = &policy["spec"]["validations"][0];
            if !own(text(validation, "/expression"), object)? {
                let (by, why) = (name(policy), text(validation, "/message"));
                return Err(Refusal::forbidden(format!(
                    "{plural} {:?} is forbidden: ValidatingAdmissionPolicy '{by}' with binding \
                     '{by}' denied request: {why}",
                    name(object)
                )));
            }
        }
        Ok(())
    }
}

/// The policies that a binding puts into force.
fn bound(store: &Store) -> BTreeMap<String, Value> {
    let bindings = store.all("validatingadmissionpolicybindings");
    let policies = bindings.filter_map(|(_, binding)| {
        let name = text(binding, "/spec/policyName");
        let policy = store.get(&Key::new("validatingadmissionpolicies", "", name))?;
        Some((name.to_owned(), Value::clone(policy)))
    });
    policies.collect()
}

fn matches(policy: &Value, plural: &str, namespace: &str, object: &Value) -> bool {
    let constraints = &policy["spec"]["matchConstraints"];
    let namespaces = map(constraints, "/namespaceSelector/matchLabels");
    let here = namespaces.get("kubernetes.io/metadata.name").is_none_or(|it| it == namespace);
    let rules = list(constraints, "/resourceRules");
    let creates = rules.iter().any(|rule| {
        list(rule, "/resources").iter().any(|it| it == plural)
            && list(rule, "/operations").iter().any(|it| it == "CREATE")
    });
    let named = format!("object.metadata.name == '{}'", name(object));
    let conditions = list(policy, "/spec/matchConditions");
    let concerns = |expression: &str| expression == named || own(expression, object) == Ok(true);
    here && creates && conditions.iter().all(|it| concerns(text(it, "/expression")))
}

/// Whether `expression`, which asks for one label's value or is a plain no, holds of `object`.
fn own(expression: &str, object: &Value) -> Result<bool, Refusal> {
    if expression == "false" {
        return Ok(false);
    }
    let last = expression.rsplit(" && ").next().unwrap_or_default();
    let asked = last
        .strip_prefix("object.metadata.labels['")
        .and_then(|rest| rest.strip_suffix('\''))
        .and_then(|rest| rest.split_once("'] == '"));
    let Some((key, value)) = asked else {
        return Err(Refusal::internal(format!("can't evaluate {expression:?}")));
    };
    Ok(map(object, "/metadata/labels").get(key).is_some_and(|it| it == value))
}
