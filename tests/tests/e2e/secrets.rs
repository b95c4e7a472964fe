//! What nobody may read is nowhere to be read, and what runs may do no more than it must.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{self as core, ConfigMap, Pod, PodSpec};
use k8s_openapi::api::events::v1 as events;
use kube::api::{ListParams, LogParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shadow_api::{LABEL_MIGRATION, StatefulMigration};
use shadow_e2e::cluster::{Cluster, documents};
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::workload::Workload;
use shadow_e2e::{in_lab, root, scenario};

use crate::{alone, deployed, message, with_operator};

const SYSTEM: &str = "ms2m-system";
const OPERATOR: &str = "app.kubernetes.io/name=shadow-operator";

/// A password, and how it stands in a URL.
struct Password {
    whose: &'static str,
    user: String,
    plain: String,
    encoded: String,
}

impl Password {
    /// Of the broker's user, and wrong.
    fn wrong(cluster: &Cluster, whose: &'static str, word: &str) -> Self {
        let user = cluster.lab.rabbitmq().user;
        let (plain, encoded) = (format!("{word}/p@ss w0rd"), format!("{word}%2Fp%40ss%20w0rd"));
        Self { whose, user, plain, encoded }
    }

    fn url(&self) -> String {
        format!("amqp://{}:{}@rabbitmq.default.svc:5672/%2f", self.user, self.encoded)
    }

    /// By what it is called in a report, which does not repeat it.
    fn forms(&self) -> Vec<(String, String)> {
        let Self { whose, user, plain, encoded } = self;
        // What follows it would change the last letters.
        let base64 = |text: String| STANDARD.encode(&text.as_bytes()[..text.len() / 3 * 3]);
        let forms = [
            ("in plain text", plain.clone()),
            ("percent-encoded", encoded.clone()),
            ("in base64", base64(plain.clone())),
            ("in base64, after the user", base64(format!("{user}:{plain}"))),
            ("in base64, as SASL has it", base64(format!("\0{user}\0{plain}"))),
            ("in base64, in the URL", base64(self.url())),
        ];
        forms.map(|(form, text)| (format!("{whose} {form}"), text)).into()
    }
}

/// Everything that somebody could read, by where it is.
#[derive(Default)]
struct Read(BTreeMap<String, String>);

impl Read {
    fn keep<K: Resource<DynamicType = ()> + Serialize>(
        &mut self,
        object: &K,
    ) -> anyhow::Result<()> {
        let meta = object.meta();
        let at = |part: &Option<String>| part.clone().unwrap_or_default();
        let place = format!(
            "{} {}/{} ({}, {})",
            K::kind(&()),
            at(&meta.namespace),
            at(&meta.name),
            K::api_version(&()),
            at(&meta.resource_version)
        );
        let mut text = serde_json::to_value(object)?;
        // The user has written it there.
        if let Some(url) = text.pointer_mut("/spec/messageQueueConfig/brokerUrl") {
            *url = Value::Null;
        }
        self.0.insert(place, text.to_string());
        Ok(())
    }

    async fn all<K>(&mut self, cluster: &Cluster, which: &ListParams) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(cluster.client.clone());
        let found =
            api.list(which).await.with_context(|| format!("list every {}", K::kind(&())))?;
        found.iter().try_for_each(|object| self.keep(object))
    }

    /// What a migration makes goes with it: looked at again and again.
    async fn follow(&mut self, cluster: &Cluster) -> anyhow::Result<std::convert::Infallible> {
        let ours = ListParams::default().labels(LABEL_MIGRATION);
        loop {
            self.all::<Pod>(cluster, &ours).await?;
            self.all::<Job>(cluster, &ours).await?;
            self.logs(cluster, "default", &ours).await;
            self.all::<StatefulMigration>(cluster, &ListParams::default()).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The present logs and those of the containers before. A container that has not begun, or was
    /// never restarted, has none.
    async fn logs(&mut self, cluster: &Cluster, namespace: &str, which: &ListParams) {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let found = pods.list(which).await.map(|list| list.items).unwrap_or_default();
        for pod in found {
            for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
                for previous in [false, true] {
                    let container = Some(container.name.clone());
                    let asked = LogParams { container, previous, ..LogParams::default() };
                    if let Ok(text) = pods.logs(&pod.name_any(), &asked).await {
                        let place = format!("log of {} (previous: {previous})", pod.name_any());
                        self.0.insert(place, text);
                    }
                }
            }
        }
    }

    async fn everything(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let every = ListParams::default();
        self.logs(cluster, SYSTEM, &every).await;
        self.all::<core::Event>(cluster, &every).await?;
        self.all::<events::Event>(cluster, &every).await?;
        self.all::<StatefulMigration>(cluster, &every).await?;
        self.all::<ConfigMap>(cluster, &every).await?;
        self.all::<Pod>(cluster, &every).await?;
        self.all::<Job>(cluster, &every).await
    }

    /// Where a form of a password stands.
    fn leaks(&self, passwords: &[Password]) -> Vec<String> {
        let forms: Vec<_> = passwords.iter().flat_map(Password::forms).collect();
        let mut leaks = Vec::new();
        for (place, text) in &self.0 {
            let found = forms.iter().filter(|(_, form)| text.contains(form.as_str()));
            leaks.extend(found.map(|(form, _)| format!("{form} is in {place}")));
        }
        leaks
    }

    fn has(&self, place: &str, words: &str) -> bool {
        self.0.iter().any(|(at, text)| at.starts_with(place) && text.contains(words))
    }
}

/// The migration is refused at the broker.
async fn is_refused(cluster: &Cluster, edit: impl Fn(&mut Value)) -> anyhow::Result<()> {
    let source = cluster.pod_of("consumer").await?;
    let nodes = scenario::other_node(cluster, &source)?;
    let name = scenario::fresh_name();
    let mut manifest = migrate::manifest(&name, &source.name_any(), &nodes.1);
    edit(&mut manifest["spec"]["messageQueueConfig"]);
    migrate::create(cluster, manifest).await?;
    let patience = Duration::from_mins(1);
    let done = migrate::follow(cluster, &name, patience, async |_| Ok(())).await?;
    let text = message(&done);
    ensure!(text.starts_with("BrokerAccessRefused: "), "a wrong password is refused: {text}");
    ensure!(text.ends_with("; nothing was changed"), "and nothing was changed: {text}");
    Ok(())
}

/// A move that completes, one with a wrong password in its Secret, one with a wrong password in its spec.
async fn three_moves(cluster: &Cluster, secret: &str, url: &str) -> anyhow::Result<()> {
    let moved = scenario::move_consumer(cluster, None, |_| {}).await?;
    ensure!(phase(&moved.object) == "Completed", "ended {}", message(&moved.object));
    is_refused(cluster, |config| {
        config["brokerSecretRef"] = json!({ "name": secret, "key": "url" });
    })
    .await?;
    is_refused(cluster, |config| {
        config["brokerUrl"] = json!(url);
        config.as_object_mut().map(|config| config.remove("brokerSecretRef"));
    })
    .await
}

#[test]
fn a_password_of_the_broker_is_nowhere() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload { probe: false, ..Workload::default() }).await?;
        let broker = cluster.lab.rabbitmq();
        let own = Password {
            whose: "the broker's password",
            user: broker.user.clone(),
            encoded: broker.password.clone(),
            plain: broker.password,
        };
        ensure!(own.plain.len() >= 8, "the lab's password is found by chance");
        let in_secret = Password::wrong(&cluster, "the Secret's wrong password", "Heron-7f3a");
        let in_spec = Password::wrong(&cluster, "the spec's wrong password", "Plover-91bc");
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "wrong-broker", "namespace": "default" },
            "stringData": { "url": in_secret.url() },
        });
        cluster.apply_object(secret).await?;
        let mut read = Read::default();
        let url = in_spec.url();
        tokio::select! {
            moved = three_moves(&cluster, "wrong-broker", &url) => moved?,
            never = read.follow(&cluster) => match never? {},
        }
        read.everything(&cluster).await?;
        // What is not read can't be found.
        for (place, words) in [
            ("Event ", "BrokerAccessRefused"),
            ("log of shadow-operator", "leading"),
            ("StatefulMigration ", "took over on node"),
            ("Pod default/", LABEL_MIGRATION),
            ("Job default/ms2m-transfer", "transfer"),
        ] {
            ensure!(read.has(place, words), "there is no {place}with {words}");
        }
        let leaks = read.leaks(&[own, in_secret, in_spec]);
        ensure!(leaks.is_empty(), "{}", leaks.join("\n"));
        cluster.kubectl(&["delete", "secret", "wrong-broker"], "")?;
        Ok(())
    })
}

/// What is missing of what a pod should be denied.
fn lax(spec: &PodSpec, root: bool) -> Vec<String> {
    let mut lax = Vec::new();
    let mut must = |what: &str, so: bool| {
        if !so {
            lax.push(what.to_owned());
        }
    };
    let pod = spec.security_context.clone().unwrap_or_default();
    for (what, shared) in [
        ("no network of the node", spec.host_network),
        ("no processes of the node", spec.host_pid),
        ("no IPC of the node", spec.host_ipc),
    ] {
        must(what, shared != Some(true));
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let own = container.security_context.clone().unwrap_or_default();
        let user = own.run_as_user.or(pod.run_as_user);
        if root {
            must("user 0, said aloud", user == Some(0));
        } else {
            must("runAsNonRoot", own.run_as_non_root.or(pod.run_as_non_root) == Some(true));
            must("another user than 0", user.is_some_and(|user| user != 0));
        }
        let seccomp = own.seccomp_profile.or_else(|| pod.seccomp_profile.clone());
        must("seccomp RuntimeDefault", seccomp.is_some_and(|it| it.type_ == "RuntimeDefault"));
        must("readOnlyRootFilesystem", own.read_only_root_filesystem == Some(true));
        must("no privilege escalation", own.allow_privilege_escalation == Some(false));
        must("no privileged container", own.privileged != Some(true));
        let capabilities = own.capabilities.unwrap_or_default();
        let all = capabilities.drop.unwrap_or_default() == ["ALL"];
        must("all capabilities dropped", all && capabilities.add.unwrap_or_default().is_empty());
    }
    lax
}

#[test]
fn operator_and_agents_are_denied_what_they_do_not_need() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = with_operator().await?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), SYSTEM);
        let operators = pods.list(&ListParams::default().labels(OPERATOR)).await?.items;
        ensure!(!operators.is_empty(), "an operator runs");
        for pod in &operators {
            let spec = pod.spec.as_ref().context("a spec")?;
            ensure!(lax(spec, false).is_empty(), "{}: {:?}", pod.name_any(), lax(spec, false));
            for shell in ["/bin/sh", "/bin/bash", "sh"] {
                let name = pod.name_any();
                let run = ["-n", SYSTEM, "exec", name.as_str(), "--", shell, "-c", "exit"];
                let answer = cluster.kubectl(&run, "");
                let words = answer.err().with_context(|| format!("{shell} is in the image"))?;
                let words = format!("{words:#}");
                let missing = words.contains("not found") || words.contains("No such file");
                ensure!(missing, "there is no {shell}, but: {words}");
            }
        }
        let agents = documents(&root().join("config/daemonset/ms2m-agent.yaml"))?;
        let agents = agents.into_iter().find(|document| document["kind"] == "DaemonSet");
        let agents: DaemonSet = serde_json::from_value(agents.context("a DaemonSet")?)?;
        let spec = agents.spec.and_then(|it| it.template.spec).context("a pod")?;
        // Archives belong to root.
        ensure!(lax(&spec, true).is_empty(), "the agents: {:?}", lax(&spec, true));
        Ok(())
    })
}
