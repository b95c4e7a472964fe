//! The broker and the registry, asked from here as the operator asks them. Nothing is moved: at the broker
//! an exclusive queue is declared, which goes with the connection; the registry is asked for an upload that
//! is given up at once.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use shadow_broker::{Connector, Session, Target};
use shadow_checkpoint::{Credentials, ImageRef};
use shadow_protocol::names::{control_queue, lock_queue};

use super::{BrokerAt, RegistryAt, Url, ask as ask_api};
use crate::facts::{Broker, Known, Registry, Survey};
use crate::text::{Text, chain};

/// Our name at the broker, and of no queue there.
const OURS: &str = "doctor";

/// Both, as far as they are named.
pub async fn ask(
    client: &Client,
    connector: &dyn Connector,
    broker: Option<&BrokerAt>,
    registry: Option<&RegistryAt>,
) -> (Option<Broker>, Option<Registry>) {
    let broker = async {
        let at = broker?;
        let answers = survey(client, connector, at).await;
        Some(Broker { answers, queue: at.queue.clone() })
    };
    let registry = async {
        let at = registry?;
        Some(Registry { name: at.repository.clone(), takes: may_push(at).await })
    };
    tokio::join!(broker, registry)
}

async fn survey(client: &Client, connector: &dyn Connector, at: &BrokerAt) -> Known<Survey> {
    let url = url(client, &at.url).await?;
    let target = Target { url, management_url: at.management_url.clone() };
    let session = connector.open(&target, OURS).await.map_err(|error| chain(&error))?;
    let surveyed = look(session.as_ref(), at.queue.as_deref()).await;
    session.close().await;
    surveyed
}

async fn look(session: &dyn Session, queue: Option<&str>) -> Known<Survey> {
    // A lock of our own: the queue's may be held by a migration.
    let ours = lock_queue(&format!("{OURS}.{}", std::process::id()));
    let lock = session.lock(&ours).await.err().map(|error| chain(&error));
    let primary = queue.unwrap_or(&ours);
    let found =
        session.survey(primary, &control_queue(OURS)).await.map_err(|error| chain(&error))?;
    Ok(Survey {
        version: found.version.into(),
        alarms: found.alarms.into_iter().map(Text::from).collect(),
        statistics_disabled: found.statistics_disabled,
        queue_exists: found.queue.is_some(),
        lock,
    })
}

async fn url(client: &Client, url: &Url) -> Known<String> {
    let (namespace, name, key) = match url {
        Url::Given(url) => return Ok(url.clone()),
        Url::Secret { namespace, name, key } => (namespace, name, key),
    };
    let failed = |why: &str| Text::from(format!("Secret {namespace}/{name} key {key}: {why}"));
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = ask_api(async { api.get_opt(name).await }).await;
    let found = found.map_err(|why| failed(&format!("can't be read: {why}")))?;
    let secret = found.ok_or_else(|| failed("does not exist"))?;
    let value = secret.data.unwrap_or_default().remove(key);
    let value = value.ok_or_else(|| failed("has no such key"))?;
    String::from_utf8(value.0).map_err(|_| failed("is not text"))
}

/// As the transfer does it, up to the first byte.
async fn may_push(at: &RegistryAt) -> Result<(), Text> {
    let image: ImageRef = at.repository.parse().map_err(|error| chain(&error))?;
    let credentials = Credentials::find(&image.host, at.auth.as_deref());
    let credentials = credentials.map_err(|error| chain(&error))?;
    let asked = async {
        let client = shadow_checkpoint::Client::connect(&image.host, credentials, false).await?;
        client.may_push(&image.repository).await
    };
    asked.await.map_err(|error| chain(&error))
}
