//! The node agents, as the operator speaks to them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use http::Method;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shadow_checkpoint::agent::wire::{AUDIENCE, Arrived, ForgetOrder, NAMESPACE, PORT};
use shadow_checkpoint::agent::{Agent, Error};
use shadow_protocol::observation::Trouble;

use crate::act::{PATIENCE, kube_trouble};
use crate::authority;
use crate::cluster::Cluster;
use crate::observe::chain;
use crate::secret;

/// The label of an agent's pod.
const NAME: (&str, &str) = ("app.kubernetes.io/name", "ms2m-agent");
/// Whose tokens bring checkpoints.
const SENDER: &str = "ms2m-transfer";
/// How long such a token is good, in seconds: the least that the API server gives.
const TOKEN_LIVES: i64 = 600;
/// For an order that takes no time.
const QUICK: Duration = Duration::from_secs(5);
/// For one that moves an archive.
const LONG: Duration = Duration::from_mins(10);
/// How often an agent that is not reachable is asked again: for about a minute, in which its pod can be
/// replaced by a newer one on the same address.
const RETRIES: usize = 30;

/// Way to the agents.
#[derive(Clone)]
pub struct Agents {
    client: Client,
    /// The operator's own token for them, which its kubelet renews.
    token: PathBuf,
}

/// An order that moves an archive, and what has come of it.
pub struct Moving {
    task: tokio::task::JoinHandle<()>,
    pub(crate) outcome: Arc<std::sync::OnceLock<Result<Arrived, String>>>,
    /// The nodes that take part, and the addresses of their agents.
    parties: Vec<Party>,
}

/// A node, and the address of its agent.
pub type Party = (String, String);

impl Moving {
    /// An agent that takes part has been replaced: the new one knows nothing of it.
    pub fn is_orphaned(&self, cluster: &Cluster) -> bool {
        let replaced =
            |(node, then): &Party| address(cluster, node).is_some_and(|now| now != *then);
        self.outcome.get().is_none() && self.parties.iter().any(replaced)
    }
}

impl Drop for Moving {
    /// The agent goes on; who asks again hears what has come of it.
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Address of the agent on a node: of a pod that is ready.
pub fn address(cluster: &Cluster, node: &str) -> Option<String> {
    address_of(cluster, node, is_ready)
}

/// Address of the agent on a node, ready or not.
pub fn last_address(cluster: &Cluster, node: &str) -> Option<String> {
    address(cluster, node).or_else(|| address_of(cluster, node, |_| true))
}

fn address_of(cluster: &Cluster, node: &str, serves: impl Fn(&Pod) -> bool) -> Option<String> {
    let is_agent = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        pod.namespace().as_deref() == Some(NAMESPACE)
            && pod.labels().get(NAME.0).is_some_and(|name| name == NAME.1)
            && spec.and_then(|spec| spec.node_name.as_deref()) == Some(node)
            && pod.metadata.deletion_timestamp.is_none()
            && serves(pod)
    };
    let found = cluster.pods.state_filter(is_agent);
    let ip = found.first()?.status.as_ref()?.pod_ip.clone()?;
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip };
    Some(format!("https://{host}:{PORT}"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True")
}

fn trouble(error: &Error) -> Trouble {
    Trouble {
        reason: "AgentFailed".to_owned(),
        message: chain(error),
        permanent: !error.is_passing(),
    }
}

impl Agents {
    /// The operator's token is in the file `token`.
    pub fn new(client: Client, token: PathBuf) -> Self {
        Self { client, token }
    }

    /// The authorities of the agents' certificates, PEM.
    pub async fn authorities(&self) -> Result<String, Trouble> {
        let found = secret::text(&self.client, NAMESPACE, authority::TLS, "ca.crt").await;
        found.map_err(|error| Trouble {
            reason: "AgentFailed".to_owned(),
            message: format!("Secret {NAMESPACE}/{} key ca.crt: {}", authority::TLS, chain(&error)),
            permanent: false,
        })
    }

    async fn at(&self, address: &str) -> Result<Agent, Trouble> {
        let token = tokio::fs::read_to_string(&self.token).await.map_err(|error| Trouble {
            reason: "AgentFailed".to_owned(),
            message: format!("read the operator's token {}: {error}", self.token.display()),
            permanent: false,
        })?;
        let authorities = self.authorities().await?;
        Agent::new(address, authorities.as_bytes(), &token).map_err(|error| trouble(&error))
    }

    /// An order that takes no time.
    pub async fn order<T: DeserializeOwned>(
        &self,
        address: &str,
        method: Method,
        path: &str,
        order: &impl Serialize,
    ) -> Result<T, Trouble> {
        let agent = self.at(address).await?;
        agent.order(method, path, order, QUICK).await.map_err(|error| trouble(&error))
    }

    /// An order that moves an archive, to the first of the `parties`. When there is an answer, `done` is
    /// called.
    pub async fn move_archive(
        &self,
        parties: Vec<Party>,
        path: &'static str,
        order: impl Serialize + Send + Sync + 'static,
        done: impl FnOnce() + Send + 'static,
    ) -> Result<Moving, Trouble> {
        let address = parties.first().map(|(_, address)| address.as_str()).unwrap_or_default();
        let agent = self.at(address).await?;
        let outcome = Arc::new(std::sync::OnceLock::new());
        let told = outcome.clone();
        let task = tokio::spawn(async move {
            let ask = || agent.order::<Arrived>(Method::POST, path, &order, LONG);
            let pauses = ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(200))
                .with_max_delay(Duration::from_secs(2))
                .with_max_times(RETRIES);
            let answer = ask.retry(pauses).when(Error::is_passing).await;
            let _ = told.set(answer.map_err(|error| chain(&error)));
            done();
        });
        Ok(Moving { task, outcome, parties })
    }

    /// A token that brings one checkpoint.
    pub async fn sender_token(&self) -> Result<String, Trouble> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                expiration_seconds: Some(TOKEN_LIVES),
                bound_object_ref: None,
            }),
            ..TokenRequest::default()
        };
        let what = format!("{NAMESPACE}/{SENDER}");
        let params = PostParams::default();
        let made = accounts.create_token_request(SENDER, &params, &request);
        let asked = "request a token of ServiceAccount";
        let silent = || Trouble {
            reason: "ApiUnavailable".to_owned(),
            message: format!("{asked} {what}: no answer"),
            permanent: false,
        };
        let made = tokio::time::timeout(PATIENCE, made).await.map_err(|_| silent())?;
        let made = made.map_err(|error| kube_trouble(asked, &what, &error))?;
        made.status.and_then(|status| status.token).ok_or_else(silent)
    }

    /// Nobody waits for it, and nothing depends on it: an agent forgets by itself in the end.
    pub async fn forget(&self, address: &str, order: &ForgetOrder) {
        let forgotten: Result<serde_json::Value, _> =
            self.order(address, Method::POST, "/forget", order).await;
        if let Err(trouble) = forgotten {
            tracing::warn!(message = trouble.message, "an agent did not clean up");
        }
    }
}
