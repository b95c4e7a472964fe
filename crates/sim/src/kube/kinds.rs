//! The kinds of objects that the API server knows.

/// A kind of object.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty: the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Name in paths. No two kinds share one, so it names the kind everywhere in here.
    pub plural: &'static str,
    /// Name in objects.
    pub kind: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether its status is a subresource, which writes of the object itself leave alone.
    pub status: bool,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    status: bool,
) -> Kind {
    Kind { group, version, plural, kind, namespaced, status }
}

const fn policy(plural: &'static str, name: &'static str, status: bool) -> Kind {
    kind("admissionregistration.k8s.io", "v1", plural, name, false, status)
}

/// All of them.
pub const KINDS: &[Kind] = &[
    kind("", "v1", "configmaps", "ConfigMap", true, false),
    kind("", "v1", "namespaces", "Namespace", false, true),
    kind("", "v1", "nodes", "Node", false, true),
    kind("", "v1", "pods", "Pod", true, true),
    kind("", "v1", "podtemplates", "PodTemplate", true, false),
    kind("", "v1", "secrets", "Secret", true, false),
    kind("", "v1", "services", "Service", true, true),
    policy("validatingadmissionpolicies", "ValidatingAdmissionPolicy", true),
    policy("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", false),
    kind("apps", "v1", "deployments", "Deployment", true, true),
    kind("apps", "v1", "replicasets", "ReplicaSet", true, true),
    kind("apps", "v1", "statefulsets", "StatefulSet", true, true),
    kind("batch", "v1", "jobs", "Job", true, true),
    kind("coordination.k8s.io", "v1", "leases", "Lease", true, false),
    kind("events.k8s.io", "v1", "events", "Event", true, false),
    kind("migration.ms2m.io", "v1alpha1", "statefulmigrations", "StatefulMigration", true, true),
];

impl Kind {
    /// The kind named `plural` in paths.
    pub fn named(plural: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.plural == plural)
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}
