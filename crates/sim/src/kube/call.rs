//! A request, understood.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use percent_encoding::percent_decode_str;

use super::kinds::Kind;
use super::refusal::Refusal;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Reads one object.
    Get,
    /// Reads many.
    List,
    /// Follows many.
    Watch,
    /// Creates one.
    Create,
    /// Replaces one.
    Replace,
    /// Changes one.
    Patch,
    /// Deletes one.
    Delete,
    /// Has a kubelet checkpoint a container.
    Checkpoint,
}

impl Verb {
    /// It changes an object: somebody else may have been quicker.
    pub fn writes(self) -> bool {
        matches!(self, Self::Create | Self::Replace | Self::Patch | Self::Delete)
    }
}

/// A request as a [`super::Faults`] sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Name that the client was made with.
    pub client: String,
    /// What it does.
    pub verb: Verb,
    /// Kind of the objects, as `pods`.
    pub plural: &'static str,
    /// Namespace; absent for lists of all namespaces and objects outside of namespaces.
    pub namespace: Option<String>,
    /// Name of the object; of a checkpoint: `<namespace>/<pod>/<container>`.
    pub name: Option<String>,
    /// As `status`; of a checkpoint: the node.
    pub subresource: Option<String>,
    /// How many calls with this client, verb, kind and subresource there were before.
    pub nth: u64,
    /// The query.
    pub(super) query: BTreeMap<String, String>,
}

impl Call {
    /// The call that `method` on `path` with `query` is.
    pub(super) fn parse(
        client: &str,
        method: &Method,
        path: &str,
        query: &str,
    ) -> Result<Self, Refusal> {
        let unknown = || Refusal::not_found(format!("{method} {path}"));
        let query = pairs(query);
        let mut parts = path.split('/').filter(|part| !part.is_empty()).map(decoded);
        let group = match parts.next().as_deref() {
            Some("api") => String::new(),
            Some("apis") => parts.next().ok_or_else(unknown)?,
            _ => return Err(unknown()),
        };
        let version = parts.next().ok_or_else(unknown)?;
        let rest: Vec<String> = parts.collect();
        let (namespace, rest) = match rest.as_slice() {
            [first, namespace, rest @ ..] if first == "namespaces" && !rest.is_empty() => {
                (Some(namespace.clone()), rest)
            }
            rest => (None, rest),
        };
        let (plural, rest) = rest.split_first().ok_or_else(unknown)?;
        let kind = Kind::named(plural)
            .filter(|kind| kind.group == group && kind.version == version)
            .ok_or_else(unknown)?;
        let mut call = Self {
            client: client.to_owned(),
            verb: Verb::Get,
            plural: kind.plural,
            namespace,
            name: rest.first().cloned(),
            subresource: rest.get(1).cloned(),
            nth: 0,
            query,
        };
        if let [node, proxy, checkpoint, target @ ..] = rest
            && (proxy.as_str(), checkpoint.as_str()) == ("proxy", "checkpoint")
        {
            call.verb = Verb::Checkpoint;
            call.subresource = Some(node.clone());
            call.name = Some(target.join("/"));
            return Ok(call);
        }
        let watch = call.is("watch");
        call.verb = match (method, &call.name) {
            (&Method::GET, Some(_)) => Verb::Get,
            (&Method::GET, None) if watch => Verb::Watch,
            (&Method::GET, None) => Verb::List,
            (&Method::POST, None) => Verb::Create,
            (&Method::PUT, Some(_)) => Verb::Replace,
            (&Method::PATCH, Some(_)) => Verb::Patch,
            (&Method::DELETE, Some(_)) => Verb::Delete,
            _ => return Err(unknown()),
        };
        Ok(call)
    }

    /// The name that a right can be given for: a list's is the one that it asks for.
    pub fn asked_for(&self) -> Option<&str> {
        let selected = || {
            let mut terms = self.parameter("fieldSelector").split(',');
            terms.find_map(|term| term.strip_prefix("metadata.name="))
        };
        self.name.as_deref().or_else(selected)
    }

    /// A parameter of the query.
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Whether a parameter is `true`.
    pub(super) fn is(&self, name: &str) -> bool {
        self.parameter(name) == "true"
    }

    /// How long a watch may last.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.parameter("timeoutSeconds").parse().unwrap_or(1_800))
    }
}

fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

fn pairs(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let text: Cow<str> = Cow::Owned(text.replace('+', " "));
        decoded(&text)
    };
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(method: &Method, path: &str, query: &str) -> Call {
        Call::parse("c", method, path, query).unwrap()
    }

    #[test]
    fn paths_are_understood() {
        let call = parsed(&Method::GET, "/api/v1/pods", "watch=true&labelSelector=a%3Db");
        assert_eq!(
            (call.verb, call.plural, call.namespace.as_deref()),
            (Verb::Watch, "pods", None)
        );
        assert_eq!(call.parameter("labelSelector"), "a=b");
        let path = "/apis/migration.ms2m.io/v1alpha1/namespaces/shop/statefulmigrations/m/status";
        let call = parsed(&Method::PUT, path, "");
        assert_eq!(call.verb, Verb::Replace);
        assert_eq!(call.namespace.as_deref(), Some("shop"));
        assert_eq!(call.name.as_deref(), Some("m"));
        assert_eq!(call.subresource.as_deref(), Some("status"));
        let call =
            parsed(&Method::POST, "/api/v1/nodes/n1/proxy/checkpoint/shop/p/app", "timeout=9");
        assert_eq!(call.verb, Verb::Checkpoint);
        assert_eq!(call.subresource.as_deref(), Some("n1"));
        assert_eq!(call.name.as_deref(), Some("shop/p/app"));
        assert!(Call::parse("c", &Method::GET, "/apis/apps/v1/pods", "").is_err());
    }
}
