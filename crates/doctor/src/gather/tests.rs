//! An API server with fixed answers, and what is gathered from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use shadow_broker::rabbitmq::RabbitMq;

use super::*;
use crate::facts::{Agent, Crd};

type Asked = Arc<Mutex<Vec<String>>>;

/// Answers by method and path; what has none is forbidden. What was asked is written down.
fn server(answers: &[(&str, Value)]) -> (Client, Asked) {
    let answers: BTreeMap<String, Value> =
        answers.iter().map(|(path, answer)| ((*path).to_owned(), answer.clone())).collect();
    let asked = Asked::default();
    let log = asked.clone();
    let answer = move |request: Request<Body>| {
        let line = format!("{} {}", request.method(), request.uri().path());
        log.lock().unwrap().push(line.clone());
        let watches = request.uri().query().is_some_and(|query| query.contains("fieldSelector"));
        let (code, answer) = match answers.get(&line) {
            Some(answer) => (200, answer.clone()),
            None => (
                403,
                json!({ "status": "Failure", "reason": "Forbidden", "code": 403,
                                  "message": format!("you may not {line}") }),
            ),
        };
        let body = Body::from(answer.to_string().into_bytes());
        async move {
            if watches {
                // The end of a pod that nobody sees.
                std::future::pending::<()>().await;
            }
            Response::builder().status(code).body(body)
        }
    };
    (Client::new(tower::service_fn(answer), "default"), asked)
}

fn nodes() -> (&'static str, Value) {
    let node = json!({ "metadata": { "name": "worker-1" }, "status": {
        "conditions": [{ "type": "Ready", "status": "True" }],
        "nodeInfo": { "kubeletVersion": "v1.36.3", "containerRuntimeVersion": "cri-o://1.36.3",
            "kernelVersion": "6.18.5", "architecture": "amd64", "bootID": "", "kubeProxyVersion": "",
            "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "" } } });
    ("GET /api/v1/nodes", json!({ "metadata": {}, "items": [node] }))
}

async fn gather(client: &Client, options: Options) -> Result<Facts, Error> {
    Box::pin(facts(client, &RabbitMq::new(None), &options, std::future::pending())).await
}

#[tokio::test]
async fn what_may_not_be_asked_is_unknown_and_hides_nothing_else() {
    let (client, asked) = server(&[nodes()]);
    let found = gather(&client, Options::default()).await.unwrap();
    let node = &found.nodes[0];
    assert_eq!((node.ready, node.runtime.as_str()), (true, "cri-o://1.36.3"));
    for why in [
        node.gate.clone().unwrap_err(),
        node.agent.clone().unwrap_err(),
        found.crd.unwrap_err(),
        found.rights.unwrap_err(),
    ] {
        assert!(why.as_str().starts_with("you may not "), "{why}");
    }
    assert!(node.report.clone().unwrap_err().as_str().contains("--no-probe"));
    assert!(!asked.lock().unwrap().iter().any(|line| line.starts_with("POST /api/v1/namespaces")));
}

#[tokio::test]
async fn rights_agent_and_crd_are_gathered() {
    let review = json!({ "spec": {}, "status": { "allowed": true } });
    let agent = json!({ "metadata": { "name": "a" }, "spec": { "nodeName": "worker-1",
        "containers": [] }, "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    let crd = serde_json::to_value(shadow_api::crd()).unwrap();
    let configz = json!({ "kubeletconfig": { "featureGates": { "ContainerCheckpoint": true } } });
    let crds = "GET /apis/apiextensions.k8s.io/v1/customresourcedefinitions/";
    let (client, _) = server(&[
        nodes(),
        ("POST /apis/authorization.k8s.io/v1/subjectaccessreviews", review),
        ("GET /api/v1/namespaces/ms2m-system/pods", json!({ "metadata": {}, "items": [agent] })),
        (&format!("{crds}statefulmigrations.migration.ms2m.io"), crd),
        ("GET /api/v1/nodes/worker-1/proxy/configz", configz),
    ]);
    let found = gather(&client, Options::default()).await.unwrap();
    assert!(found.rights.unwrap().iter().all(|right| right.allowed));
    assert_eq!(found.nodes[0].agent, Ok(Agent::Unready));
    assert_eq!(found.nodes[0].gate, Ok(Some(true)));
    assert_eq!(found.crd, Ok(Crd::Served));
}

#[tokio::test]
async fn without_nodes_or_the_named_pod_there_is_nothing_to_say() {
    let (client, _) = server(&[]);
    let error = gather(&client, Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("list the nodes: you may not GET /api/v1/nodes; check"), "{error}");
    let (client, _) = server(&[nodes()]);
    let pod = PodName { namespace: Some("shop".to_owned()), name: "a".to_owned(), container: None };
    let options = Options { pod: Some(pod), ..Options::default() };
    let error = gather(&client, options).await.unwrap_err().to_string();
    assert!(error.starts_with("read pod shop/a: you may not GET"), "{error}");
}

#[tokio::test]
async fn a_pod_that_is_made_is_deleted_even_when_its_end_is_not_seen() {
    let made = json!({ "metadata": { "name": "p" } });
    let (client, asked) = server(&[nodes(), ("POST /api/v1/namespaces/ms2m-system/pods", made)]);
    let image = Some("shadow:dev".to_owned());
    let options = Options { probe_image: image, ..Options::default() };
    let stop = tokio::time::sleep(Duration::from_millis(300));
    let connector = RabbitMq::new(None);
    let stopped = Box::pin(facts(&client, &connector, &options, stop)).await;
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    let asked = asked.lock().unwrap();
    let deletes = |line: &&String| {
        line.starts_with("DELETE /api/v1/namespaces/ms2m-system/pods/shadow-doctor-")
    };
    assert_eq!(asked.iter().filter(deletes).count(), 1, "{asked:?}");
}

#[tokio::test]
async fn only_named_nodes_are_looked_at() {
    let (client, _) = server(&[nodes()]);
    let named = |name: &str| Options { nodes: vec![name.to_owned()], ..Options::default() };
    let found = gather(&client, named("worker-1")).await.unwrap();
    assert_eq!((found.nodes.len(), found.all), (1, false));
    let error = gather(&client, named("worker-9")).await.unwrap_err().to_string();
    assert!(error.starts_with("there is no node worker-9"), "{error}");
}

#[test]
fn a_brokers_url_is_not_shown() {
    let url = Url::Given("amqp://user:hunter2@broker".to_owned());
    let broker = BrokerAt { url, management_url: None, queue: None };
    let options = Options { broker: Some(broker), ..Options::default() };
    assert!(!format!("{options:?}").contains("hunter2"));
}
