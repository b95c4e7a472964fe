//! What a kubelet says through the API server's node proxy. It takes `get` on nodes/proxy.

use kube::Client;
use serde::Deserialize;

use super::ask;
use crate::facts::Known;
use crate::text::{Text, chain};

/// The feature gate `ContainerCheckpoint`, if the kubelet's configuration names it.
pub async fn gate(client: &Client, node: &str) -> Known<Option<bool>> {
    parse_gate(&get(client, node, "configz").await?)
}

fn parse_gate(configz: &str) -> Known<Option<bool>> {
    #[derive(Deserialize)]
    struct Configz {
        kubeletconfig: Config,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Config {
        #[serde(default)]
        feature_gates: Option<Gates>,
    }
    #[derive(Deserialize)]
    struct Gates {
        #[serde(rename = "ContainerCheckpoint")]
        checkpoint: Option<bool>,
        /// Switches those that are beta, as this one.
        #[serde(rename = "AllBeta")]
        beta: Option<bool>,
    }
    let configz: Configz = serde_json::from_str(configz).map_err(|error| {
        Text::from(format!("the kubelet's /configz is not understood: {error}"))
    })?;
    Ok(configz.kubeletconfig.feature_gates.and_then(|gates| gates.checkpoint.or(gates.beta)))
}

/// Resident memory of a container in bytes, by the kubelet's statistics.
pub async fn memory(client: &Client, node: &str, uid: &str, container: &str) -> Known<u64> {
    parse_memory(&get(client, node, "stats/summary").await?, uid, container)
}

fn parse_memory(summary: &str, uid: &str, container: &str) -> Known<u64> {
    let summary: serde_json::Value = serde_json::from_str(summary)
        .map_err(|error| Text::from(format!("the kubelet's /stats/summary: {error}")))?;
    let list = |value: &serde_json::Value, key: &str| {
        value.get(key).and_then(serde_json::Value::as_array).cloned().unwrap_or_default()
    };
    let mut pods = list(&summary, "pods").into_iter();
    let pod = pods.find(|pod| pod.pointer("/podRef/uid").is_some_and(|it| it == uid));
    let found = pod.and_then(|pod| {
        let found = list(&pod, "containers").into_iter().find(|it| it["name"] == container)?;
        found["memory"]["rssBytes"].as_u64().or(found["memory"]["workingSetBytes"].as_u64())
    });
    found
        .ok_or_else(|| Text::from("the kubelet's statistics don't have the container's memory yet"))
}

async fn get(client: &Client, node: &str, path: &str) -> Known<String> {
    let path = format!("/api/v1/nodes/{node}/proxy/{path}");
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| chain(&error))?;
    ask(async { client.request_text(request).await }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_found_in_configz() {
        for (gates, found) in [
            (r#"{"ContainerCheckpoint":true}"#, Some(true)),
            (r#"{"ContainerCheckpoint":false,"AllBeta":true}"#, Some(false)),
            (r#"{"AllBeta":false}"#, Some(false)),
            (r#"{"Other":true}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            let configz =
                format!(r#"{{"kubeletconfig":{{"maxPods":110,"featureGates":{gates}}}}}"#);
            assert_eq!(parse_gate(&configz), Ok(found), "{gates}");
        }
        assert_eq!(parse_gate(r#"{"kubeletconfig":{}}"#), Ok(None));
        let error = parse_gate("<html>").unwrap_err();
        assert!(error.as_str().starts_with("the kubelet's /configz is not understood"));
    }

    #[test]
    fn a_containers_memory_is_found_in_the_summary() {
        let summary = r#"{"pods":[{"podRef":{"uid":"2"}},{"podRef":{"uid":"1"},"containers":[
            {"name":"app","memory":{"workingSetBytes":9,"rssBytes":7}},
            {"name":"beside","memory":{"workingSetBytes":5}},{"name":"new"}]}]}"#;
        let memory = |uid, container| parse_memory(summary, uid, container).ok();
        assert_eq!(memory("1", "app"), Some(7));
        assert_eq!(memory("1", "beside"), Some(5));
        assert_eq!(memory("1", "new"), None);
        assert_eq!(memory("2", "app"), None);
    }
}
