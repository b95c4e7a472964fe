//! A broker that obliges and applications that obey: enough for the operator to go its whole way.
//! That no message is lost is not asked here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use shadow_broker::{Connector, Error, Session, Target};
use shadow_operator::Outside;
use shadow_operator::registry::{Registry, Unusable};
use shadow_operator::settings::Options;
use shadow_protocol::broker::{
    Binding, Consumer, Counts, Emptiness, Exchange, Order, Queue, QueueType, Survey, Topology,
    Totals,
};
use shadow_protocol::control::Control;
use shadow_protocol::effect::EffectId;
use shadow_protocol::names::control_queue;
use shadow_protocol::spec::Settings;
use shadow_protocol::time::Time;
use shadow_sim::kube::{Application, Config, Kube, Life, Start, operators_own};

pub const Q: &str = "app.events";
/// The moment the runs begin at: 2026-01-01T00:00:00Z.
pub const START: Time = Time(1_767_225_600_000);

/// Queues, and who consumes which.
#[derive(Default)]
pub struct Plant {
    /// Queues other than control queues.
    queues: Vec<String>,
    bindings: Vec<Binding>,
    /// Control queues, with the queue that the pod was told to consume, if it was.
    control: BTreeMap<String, Option<String>>,
    /// Running consumers: container ID to pod and the queue it consumes.
    consumers: BTreeMap<String, (String, String)>,
    peer: String,
}

#[derive(Clone, Default)]
pub struct World(Arc<Mutex<Plant>>);

impl World {
    pub fn new() -> Self {
        let world = Self::default();
        world.plant().queues.push(Q.to_owned());
        world.plant().bindings.push(Binding::plain("app.fanout"));
        world
    }

    pub fn plant(&self) -> MutexGuard<'_, Plant> {
        self.0.lock().unwrap()
    }

    /// What is left at the broker, as text.
    pub fn left(&self) -> String {
        let plant = self.plant();
        let at: Vec<_> = plant.consumers.values().collect();
        let control: Vec<_> = plant.control.keys().collect();
        format!("{:?} {:?} {control:?} {at:?}", plant.queues, plant.bindings)
    }
}

impl Application for World {
    fn start(&mut self, start: Start<'_>) -> Life {
        if let Some(life) = operators_own(start, 1_000_000, Duration::from_millis(800)) {
            return life;
        }
        let pod = start.pod["metadata"]["name"].as_str().unwrap().to_owned();
        let mut plant = self.plant();
        // It wakes where it was told to go, else on its own queue.
        let told = plant.control.entry(control_queue(&pod)).or_default().clone();
        let queue = told.unwrap_or_else(|| Q.to_owned());
        plant.consumers.insert(start.id.to_owned(), (pod, queue));
        Life::Runs
    }

    fn ended(&mut self, id: &str) {
        self.plant().consumers.remove(id);
    }

    fn checkpoint(&mut self, id: &str, _: &str) -> Result<Duration, String> {
        assert!(self.plant().consumers.contains_key(id), "no such container");
        Ok(Duration::from_millis(400))
    }
}

#[async_trait]
impl Connector for World {
    async fn open(&self, _: &Target, _: &str) -> Result<Box<dyn Session>, Error> {
        Ok(Box::new(self.clone()))
    }
}

impl Registry for World {
    fn check<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<(), Unusable>> {
        Box::pin(async { Ok(()) })
    }
}

#[async_trait]
impl Session for World {
    fn alive(&self) -> bool {
        true
    }

    async fn lock(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn survey(&self, _: &str, control: &str) -> Result<Survey, Error> {
        let plant = self.plant();
        Ok(Survey {
            version: "4.0.5".into(),
            queue: Some(Queue {
                kind: QueueType::Classic,
                durable: true,
                exclusive: false,
                auto_delete: false,
                arguments: BTreeMap::new(),
                policy: BTreeMap::new(),
            }),
            bindings: plant.bindings.clone(),
            exchanges: BTreeMap::from([("app.fanout".into(), Exchange { kind: "fanout".into() })]),
            consumers: vec![Consumer {
                tag: "t".into(),
                ack_required: true,
                exclusive: false,
                connection: "c".into(),
                peer: plant.peer.clone(),
            }],
            totals: Totals::default(),
            service_rate: None,
            control_queue: plant.control.contains_key(control),
            alarms: Vec::new(),
            transactions: Vec::new(),
            statistics_disabled: false,
        })
    }

    async fn bindings(&self, _: &str) -> Result<Vec<Binding>, Error> {
        Ok(self.plant().bindings.clone())
    }

    async fn fed_by(&self, _: &str) -> Result<Vec<(String, bool)>, Error> {
        Ok(Vec::new())
    }

    async fn consumers(&self, _: &str) -> Result<Vec<Consumer>, Error> {
        Ok(Vec::new())
    }

    async fn connections_from(&self, _: &str) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn connected(&self, _: &str) -> Result<bool, Error> {
        Ok(true)
    }

    async fn counts(&self, queue: &str) -> Result<Option<Counts>, Error> {
        let plant = self.plant();
        let consumers = plant.consumers.values().filter(|(_, at)| at == queue).count();
        let there = plant.queues.iter().any(|name| name == queue);
        Ok(there.then(|| Counts { ready: 0, consumers: u32::try_from(consumers).unwrap() }))
    }

    async fn totals(&self, _: &str) -> Result<Totals, Error> {
        Ok(Totals::default())
    }

    async fn apply(&self, change: &Topology) -> Result<(), Error> {
        let mut plant = self.plant();
        match change {
            Topology::DeclareSideQueue { name } if !plant.queues.contains(name) => {
                plant.queues.push(name.clone());
            }
            Topology::DeclareControlQueue { name, .. } => {
                plant.control.insert(name.clone(), None);
            }
            Topology::DeleteQueue { name } => {
                plant.queues.retain(|queue| queue != name);
                plant.control.remove(name);
            }
            Topology::BindQueue { queue, binding }
                if queue == Q && !plant.bindings.contains(binding) =>
            {
                plant.bindings.push(binding.clone());
            }
            Topology::UnbindQueue { queue, binding } if queue == Q => {
                plant.bindings.retain(|old| old != binding);
            }
            Topology::DeleteExchange { name } => {
                plant.bindings.retain(|old| old.source != *name);
            }
            _ => {}
        }
        Ok(())
    }

    async fn order(&self, order: &Order, _: &EffectId) -> Result<(), Error> {
        let to = match &order.control {
            Control::StartReplay { queue, .. } => queue.clone(),
            Control::EndReplay => Q.to_owned(),
        };
        let mut plant = self.plant();
        plant.control.insert(control_queue(&order.pod), Some(to.clone()));
        for (pod, at) in plant.consumers.values_mut() {
            if *pod == order.pod {
                at.clone_from(&to);
            }
        }
        Ok(())
    }

    async fn emptiness(&self, _: &str) -> Result<Emptiness, Error> {
        Ok(Emptiness::Proved)
    }

    async fn quiet(&self, _: &str) -> Result<Emptiness, Error> {
        Ok(Emptiness::Proved)
    }

    async fn close(&self) {}
}

/// Two nodes and a Deployment with one pod, up and running; the pod's name.
pub async fn shop(kube: &Kube, world: &World) -> String {
    kube.add_node("worker-1").unwrap();
    kube.add_node("worker-2").unwrap();
    kube.cordon("worker-2", true);
    let deployment = kube
        .create(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "app", "namespace": "shop" }, "spec": { "replicas": 1 },
        }))
        .unwrap();
    let labels = json!({ "app": "consumer", "pod-template-hash": "5d8f" });
    kube.create(json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": "app-5d8f", "namespace": "shop",
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "Deployment", "name": "app",
                "uid": deployment["metadata"]["uid"], "controller": true,
            }],
        },
        "spec": {
            "replicas": 1, "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "containers": [{ "name": "app", "image": "registry.example/app:1" }],
                },
            },
        },
    }))
    .unwrap();
    let pod = until(kube, || {
        let pods = kube.all("pods");
        let ready = pods.into_iter().find(|pod| shadow_sim::kube::condition(pod, "Ready"));
        ready.map(|pod| Value::clone(&pod))
    })
    .await;
    kube.cordon("worker-2", false);
    pod["status"]["podIP"].as_str().unwrap().clone_into(&mut world.plant().peer);
    pod["metadata"]["name"].as_str().unwrap().to_owned()
}

/// Waits until `found` finds something, half an hour on the paused clock at most.
pub async fn until<T>(kube: &Kube, mut found: impl FnMut() -> Option<T>) -> T {
    let mut changes = kube.changes();
    let wait = async {
        loop {
            changes.borrow_and_update();
            if let Some(found) = found() {
                return found;
            }
            changes.changed().await.unwrap();
        }
    };
    let waited = tokio::time::timeout(Duration::from_mins(30), wait).await;
    waited.expect("it does not come to that")
}

pub fn wish(source: &str) -> Value {
    json!({
        "apiVersion": "migration.ms2m.io/v1alpha1", "kind": "StatefulMigration",
        "metadata": { "name": "move", "namespace": "shop" },
        "spec": {
            "sourcePod": source, "targetNode": "worker-2",
            "checkpointImageRepository": "registry.example/checkpoints",
            "messageQueueConfig": {
                "queueName": Q, "exchangeName": "app.fanout", "brokerUrl": "amqp://broker",
            },
        },
    })
}

/// An operator named `client`, for as long as nobody aborts it.
pub fn operator(kube: &Kube, world: &World, client: &str) -> tokio::task::JoinHandle<()> {
    let outside = Outside {
        client: kube.client(client),
        connector: Arc::new(world.clone()),
        registry: Arc::new(world.clone()),
    };
    let options = Options {
        transfer_image: "shadow:1".into(),
        registry_secret: None,
        protocol: Settings::default(),
        health: None,
    };
    tokio::spawn(async move {
        shadow_operator::run(outside, options, std::future::pending()).await.unwrap();
    })
}

/// A world in which `scenario` happens, on a clock that passes only while everybody waits.
pub fn simulate<R, F: Future<Output = R>>(scenario: impl FnOnce(Kube, World) -> F) -> R {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let _clock = shadow_operator::clock::follow(START);
        let world = World::new();
        let kube = Kube::new(Config::default(), Box::new(world.clone()));
        let controllers = tokio::spawn({
            let kube = kube.clone();
            async move { kube.run().await }
        });
        let result = scenario(kube, world).await;
        controllers.abort();
        result
    })
}
