//! Producer, consumer and probe in the cluster.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use shadow_protocol::pending::REMEMBERS;

use crate::cluster::{Cluster, set_env, wait_for};
use crate::{broker, http};

const FOLDER: &str = "eval/workloads";
/// The Python consumer, from within another program.
const CONSUME: &str = "import runpy, sys; sys.path.insert(0, '/app'); \
                       runpy.run_path('/app/consumer.py', run_name='__main__')";

/// Name of the volume and of its claim.
pub const CLAIM: &str = "consumer-data";

/// Which consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// `consumer.py`.
    Python,
    /// The Rust one.
    Rust,
}

/// What to deploy.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Messages per second over all publishers.
    pub rate: u32,
    /// Publishers, each with a connection of its own.
    pub publishers: u32,
    /// The consumer.
    pub consumer: Language,
    /// A bare pod `consumer-0` in place of the Deployment.
    pub bare: bool,
    /// A StatefulSet in place of the Deployment.
    pub stateful_set: bool,
    /// Replicas; with more than one, each has a queue of its own.
    pub replicas: u32,
    /// They all consume one queue, and each message goes to one of them.
    pub shared: bool,
    /// The exchange's type: `fanout`, `direct`, `topic`, `headers`, `x-consistent-hash`; or `default`
    /// for the default exchange, which needs no binding.
    pub exchange_type: &'static str,
    /// Declare and bind the queue on every connect.
    pub rebind: bool,
    /// Go back to the queue it was told to consume after a lost connection, and say so.
    pub remember: bool,
    /// Megabytes of memory to carry along.
    pub ballast_mb: u32,
    /// Milliseconds per message.
    pub service_ms: u32,
    /// A second container, a sidecar, an init container, and volumes of four kinds.
    pub whole: bool,
    /// Access mode of a volume claim that it mounts.
    pub claim: Option<&'static str>,
    /// `classic` or `quorum`.
    pub queue_type: &'static str,
    /// Send probes through the Service.
    pub probe: bool,
    /// Have a Service at all.
    pub service: bool,
    /// A variable to switch on a habit of the Python consumer under which it can't be moved.
    pub habit: Option<&'static str>,
    /// Python code that the Python consumer's process runs first.
    pub prelude: Option<&'static str>,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            rate: 60,
            publishers: 4,
            consumer: Language::Python,
            bare: false,
            stateful_set: false,
            replicas: 1,
            shared: false,
            exchange_type: "fanout",
            rebind: false,
            remember: false,
            ballast_mb: 0,
            service_ms: 0,
            whole: false,
            claim: None,
            queue_type: "classic",
            probe: true,
            service: true,
            habit: None,
            prelude: None,
        }
    }
}

impl Workload {
    fn consumer_manifest(&self) -> &'static str {
        match (self.bare, self.consumer) {
            _ if self.stateful_set => "eval/workloads/consumer-statefulset.yaml",
            (true, _) => "eval/workloads/consumer-pod.yaml",
            (false, Language::Python) => "eval/workloads/consumer-deployment.yaml",
            (false, Language::Rust) => "eval/workloads/consumer-deployment-rust.yaml",
        }
    }

    /// Deploys the consumer, then producer and probe, so that nothing is missed.
    pub async fn deploy(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let broker = cluster.lab.rabbitmq();
        let url =
            format!("amqp://{}:{}@rabbitmq.default.svc:5672/%2f", broker.user, broker.password);
        cluster
            .apply(&format!("{FOLDER}/secret.yaml"), |secret| {
                secret["stringData"] = json!({ "url": url });
            })
            .await?;
        for object in self.claim.into_iter().flat_map(claimed) {
            cluster.apply_object(object).await?;
        }
        if self.service {
            cluster.apply(&format!("{FOLDER}/service.yaml"), |_| {}).await?;
        }
        cluster.apply(self.consumer_manifest(), |object| self.edit_consumer(object)).await?;
        wait_for("the consumer to be ready", Duration::from_mins(2), async || {
            let label = ListParams::default().labels("app=consumer");
            let pods = cluster.pods().list(&label).await?.items;
            for pod in &pods {
                let ledger = http::get(&format!("{}/ledger", Cluster::url(pod)?)).await?;
                if !is_ready(pod) || !ledger["queue"].is_string() {
                    return Ok(None);
                }
            }
            Ok((pods.len() == self.replicas as usize).then_some(()))
        })
        .await?;
        self.deploy_load(cluster, None).await
    }

    /// Deploys publishers and probe, on this node if it is named.
    pub async fn deploy_load(&self, cluster: &Cluster, node: Option<&str>) -> anyhow::Result<()> {
        let place = |object: &mut Value| {
            let pod =
                if object["kind"] == "Pod" { object } else { &mut object["spec"]["template"] };
            pod["spec"]["nodeSelector"] = match node {
                Some(node) => json!({ "kubernetes.io/hostname": node }),
                None => Value::Null,
            };
        };
        cluster
            .apply(&format!("{FOLDER}/producer.yaml"), |object| {
                place(object);
                edit(object, |container| {
                    set_env(container, "RATE", &self.rate.to_string());
                    set_env(container, "PUBLISHERS", &self.publishers.to_string());
                    self.set_exchange(container);
                });
            })
            .await?;
        let producer = cluster.wait_deployment("default", "producer");
        let probe = async {
            if !self.probe {
                return Ok(());
            }
            if node.is_some() {
                let now = DeleteParams::default().grace_period(0);
                let label = ListParams::default().labels("app=probe");
                cluster.pods().delete_collection(&now, &label).await?;
            }
            let file = format!("{FOLDER}/probe.yaml");
            let placed = |object: &mut Value| {
                place(object);
                edit(object, |_| {});
            };
            // The one before may still be there.
            wait_for("the probe to be created", Duration::from_mins(1), async || {
                Ok(Some(cluster.apply(&file, placed).await?))
            })
            .await?;
            wait_for("the probe to be ready", Duration::from_mins(1), async || {
                Ok(is_ready(&cluster.pod_of("probe").await?).then_some(()))
            })
            .await
        };
        tokio::try_join!(producer, probe)?;
        Ok(())
    }

    fn edit_consumer(&self, object: &mut Value) {
        if self.remember {
            let pod = if self.bare { &mut *object } else { &mut object["spec"]["template"] };
            pod["metadata"]["annotations"][REMEMBERS] = json!("true");
        }
        if !self.bare {
            object["spec"]["replicas"] = json!(self.replicas);
        }
        if self.whole {
            let template = if self.bare { &mut *object } else { &mut object["spec"]["template"] };
            complete(&mut template["spec"]);
        }
        if self.claim.is_some() {
            let template = if self.bare { &mut *object } else { &mut object["spec"]["template"] };
            let claim = json!({ "claimName": CLAIM });
            add(
                &mut template["spec"]["volumes"],
                json!({ "name": CLAIM, "persistentVolumeClaim": claim }),
            );
            let mounts = &mut template["spec"]["containers"][0]["volumeMounts"];
            add(mounts, json!({ "name": CLAIM, "mountPath": "/var/data" }));
        }
        edit(object, |container| {
            if self.replicas > 1 && !self.shared {
                set_env(container, "QUEUE", "app.events.$(POD_NAME)");
            }
            self.set_exchange(container);
            set_env(container, "REBIND", if self.rebind { "1" } else { "0" });
            set_env(container, "REMEMBER", if self.remember { "1" } else { "0" });
            set_env(container, "BALLAST_MB", &self.ballast_mb.to_string());
            set_env(container, "SERVICE_MS", &self.service_ms.to_string());
            set_env(container, "QUEUE_TYPE", self.queue_type);
            if let Some(habit) = self.habit {
                set_env(container, habit, "1");
            }
            if let Some(prelude) = self.prelude {
                let code = format!("{prelude}\n{CONSUME}");
                container["command"] = json!(["/usr/bin/python3", "-c", code]);
            }
        });
    }

    /// The exchange that feeds the queues.
    pub fn exchange(&self) -> String {
        match self.exchange_type {
            "default" => String::new(),
            kind => format!("app.{kind}"),
        }
    }

    /// What the publishers write, and the queues are bound with.
    pub fn routing_key(&self) -> &'static str {
        match self.exchange_type {
            "direct" => "orders",
            "topic" => "orders.eu.new",
            // The queue's name.
            "default" => "app.events",
            // The queue's weight.
            "x-consistent-hash" => "1",
            _ => "",
        }
    }

    /// What a migration is told about the queue.
    pub fn queue_config(&self) -> Value {
        json!({
            "queueName": "app.events",
            "brokerSecretRef": { "name": "broker", "key": "url" },
            "exchangeName": self.exchange(),
            "routingKey": self.routing_key(),
        })
    }

    fn set_exchange(&self, container: &mut Value) {
        set_env(container, "EXCHANGE", &self.exchange());
        set_env(container, "EXCHANGE_TYPE", self.exchange_type);
        set_env(container, "ROUTING_KEY", self.routing_key());
    }

    /// Removes everything that [`Workload::deploy`] made, the queues included.
    pub async fn remove(cluster: &Cluster) -> anyhow::Result<()> {
        for file in [
            "producer.yaml",
            "probe.yaml",
            "consumer-deployment.yaml",
            "consumer-statefulset.yaml",
            "consumer-pod.yaml",
            "service.yaml",
            "secret.yaml",
        ] {
            cluster.delete(&format!("{FOLDER}/{file}")).await?;
        }
        let grace = DeleteParams::default().grace_period(1);
        for app in ["consumer", "producer", "probe"] {
            let label = ListParams::default().labels(&format!("app={app}"));
            cluster.pods().delete_collection(&grace, &label).await?;
        }
        wait_for("the workload's pods to be gone", Duration::from_mins(1), async || {
            let pods = cluster.pods().list(&ListParams::default()).await?;
            let left = pods.items.iter().any(|pod| {
                matches!(
                    pod.labels().get("app").map(String::as_str),
                    Some("consumer" | "producer" | "probe")
                )
            });
            Ok((!left).then_some(()))
        })
        .await?;
        cluster.kubectl(&["delete", "pvc,pv", CLAIM, "--ignore-not-found"], "")?;
        broker::clear(cluster).await
    }
}

/// A volume on every node, each its own, and a claim of it.
fn claimed(mode: &str) -> [Value; 2] {
    let size = json!({ "storage": "1Mi" });
    [
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": CLAIM },
            "spec": {
                "capacity": size, "accessModes": [mode], "storageClassName": "",
                "hostPath": { "path": "/var/lib/consumer-data", "type": "DirectoryOrCreate" },
                "claimRef": { "namespace": "default", "name": CLAIM },
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": CLAIM },
            "spec": {
                "accessModes": [mode], "storageClassName": "", "volumeName": CLAIM,
                "resources": { "requests": size },
            },
        }),
    ]
}

fn add(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}

/// What a pod may have besides its one container.
fn complete(spec: &mut Value) {
    let image = spec["containers"][0]["image"].clone();
    let container = |name: &str, code: &str| {
        json!({
            "name": name, "image": image, "command": ["/usr/bin/python3", "-c", code],
            "volumeMounts": [{ "name": "scratch", "mountPath": "/scratch" }],
        })
    };
    let waits = "import signal; signal.signal(15, lambda *_: exit()); signal.pause()";
    let mut helper = container("helper", waits);
    helper["restartPolicy"] = json!("Always");
    let once = container("once", "open('/scratch/once', 'a').write('x')");
    spec["initContainers"] = json!([once, helper]);
    if let Some(containers) = spec["containers"].as_array_mut() {
        containers[0]["volumeMounts"] = json!([
            { "name": "settings", "mountPath": "/etc/settings" },
            { "name": "credentials", "mountPath": "/etc/credentials", "readOnly": true },
            { "name": "about", "mountPath": "/etc/about" },
            { "name": "scratch", "mountPath": "/scratch" },
        ]);
        containers.push(container("beside", waits));
    }
    let labels = json!([{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }]);
    spec["volumes"] = json!([
        { "name": "settings", "configMap": { "name": "kube-root-ca.crt" } },
        { "name": "credentials", "secret": { "secretName": "broker" } },
        { "name": "about", "projected": { "sources": [{ "downwardAPI": { "items": labels } }] } },
        { "name": "scratch", "emptyDir": {} },
    ]);
}

fn is_ready(pod: &k8s_openapi::api::core::v1::Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Edits the first container of a pod or of a workload's template. Images are pulled anew: their
/// tag stays the same after a rebuild.
fn edit(object: &mut Value, change: impl Fn(&mut Value)) {
    for path in ["/spec/template/spec/containers/0", "/spec/containers/0"] {
        if let Some(container) = object.pointer_mut(path) {
            container["imagePullPolicy"] = json!("Always");
            change(container);
        }
    }
}
