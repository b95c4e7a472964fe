//! The rights that config/rbac/role.yaml gives the operator, and the API server's word where one is missing.

use std::collections::BTreeSet;

use serde_json::Value;
use shadow_sim::kube::{Call, Kind, Refusal, Verb};

const FILE: &str = include_str!("../../../../config/rbac/role.yaml");
const USER: &str = "system:serviceaccount:ms2m-system:shadow-operator";

/// One verb on one resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    pub group: String,
    /// With its subresource.
    pub resource: String,
    pub verb: String,
    /// None: all.
    pub names: Vec<String>,
    /// None: all of them, and what is in none.
    pub namespace: Option<String>,
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Role(pub BTreeSet<Right>);

/// What a request needs.
struct Asked<'a> {
    group: &'a str,
    resource: String,
    verb: &'static str,
    name: Option<&'a str>,
    namespace: Option<&'a str>,
}

impl Right {
    fn allows(&self, asked: &Asked<'_>) -> bool {
        let named = |name: &str| self.names.iter().any(|it| it == name);
        self.group == asked.group
            && self.resource == asked.resource
            && self.verb == asked.verb
            && (self.names.is_empty() || asked.name.is_some_and(named))
            && (self.namespace.is_none() || self.namespace.as_deref() == asked.namespace)
    }

    /// As the API server names it.
    pub fn words(&self) -> String {
        format!("cannot {} resource \"{}\"", self.verb, self.resource)
    }

    /// As this test does.
    pub fn short(&self) -> String {
        let Self { resource, verb, .. } = self;
        match &self.namespace {
            Some(namespace) => format!("{verb} {resource} in {namespace}"),
            None => format!("{verb} {resource}"),
        }
    }
}

impl Role {
    pub fn read() -> Self {
        let documents: Vec<Value> = serde_saphyr::from_multiple(FILE).expect("the role is YAML");
        let roles =
            documents.iter().filter(|it| it["kind"] == "ClusterRole" || it["kind"] == "Role");
        let rights = roles.flat_map(|role| {
            let namespace = role["metadata"]["namespace"].as_str();
            let all = role["rules"].as_array().expect("rules").iter();
            all.flat_map(move |rule| rights(rule, namespace))
        });
        let mut all = BTreeSet::new();
        for right in rights {
            assert!(all.insert(right.clone()), "{right:?} is given twice");
        }
        Self(all)
    }

    /// The rights that let `call` pass, or the server's answer.
    pub fn judge(&self, call: &Call) -> Result<Vec<&Right>, Refusal> {
        let mut used = Vec::new();
        for asked in asked(call) {
            match self.0.iter().find(|right| right.allows(&asked)) {
                Some(right) => used.push(right),
                None => return Err(refusal(&asked)),
            }
        }
        Ok(used)
    }
}

fn rights(rule: &Value, namespace: Option<&str>) -> Vec<Right> {
    let list = |field: &str| -> Vec<String> {
        let found = rule[field].as_array().into_iter().flatten();
        found.map(|it| it.as_str().expect("a word").to_owned()).collect()
    };
    let (groups, verbs, names) = (list("apiGroups"), list("verbs"), list("resourceNames"));
    let mut all = Vec::new();
    for group in &groups {
        for resource in list("resources") {
            all.extend(verbs.iter().map(|verb| Right {
                group: group.clone(),
                resource: resource.clone(),
                verb: verb.clone(),
                names: names.clone(),
                namespace: namespace.map(str::to_owned),
            }));
        }
    }
    all
}

fn asked(call: &Call) -> Vec<Asked<'_>> {
    let group = Kind::named(call.plural).map(|kind| kind.group).unwrap_or_default();
    let (namespace, name) = (call.namespace.as_deref(), call.asked_for());
    let resource = match &call.subresource {
        Some(subresource) => format!("{}/{subresource}", call.plural),
        None => call.plural.to_owned(),
    };
    let of = |verb| Asked { group, resource: resource.clone(), verb, name, namespace };
    match call.verb {
        Verb::Get => vec![of("get")],
        Verb::List => vec![of("list")],
        Verb::Watch => vec![of("watch")],
        // No right to create can be given for a name: it is not in the path.
        Verb::Create => vec![Asked { name: None, ..of("create") }],
        Verb::Replace => vec![of("update")],
        // Who applies what is not there yet creates it.
        Verb::Patch if group == "admissionregistration.k8s.io" => vec![of("patch"), of("create")],
        Verb::Patch => vec![of("patch")],
        Verb::Delete => vec![of("delete")],
        Verb::Checkpoint => {
            let (resource, name) = ("nodes/proxy".to_owned(), call.subresource.as_deref());
            vec![Asked { group, resource, verb: "create", name, namespace }]
        }
    }
}

fn refusal(asked: &Asked<'_>) -> Refusal {
    let Asked { group, resource, verb, name, namespace } = asked;
    let plain = resource.split('/').next().unwrap_or_default();
    let dot = if group.is_empty() { "" } else { "." };
    let named = name.map(|name| format!(" \"{name}\"")).unwrap_or_default();
    let place = match namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    Refusal::forbidden(format!(
        "{plain}{dot}{group}{named} is forbidden: User \"{USER}\" cannot {verb} resource \
         \"{resource}\" in API group \"{group}\" {place}"
    ))
}
