//! What goes wrong in the shop, and what that excuses.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use shadow_broker::memory;
use shadow_broker::memory::core::ConsumeOptions;
use shadow_operator::janitor;
use shadow_operator::leader::LEASE;
use shadow_protocol::broker::Topology;
use shadow_protocol::names::listener;
use shadow_protocol::phase::State;
use shadow_protocol::spec::IdentitySwap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::plan::{Call, Fault, RequestFault};
use super::stage::{CONTAINER, NAMESPACE, NODES, wish};
use super::{Shop, clock};
use crate::kube::{self, Deletion, Failure, Fate, Key, Refusal, Verb};
use crate::message::Broker;
use crate::scenario::WorldFault;
use crate::world::QUEUE;
use crate::world::faults::{checkpointed, committed, replacing, under_way};

/// The label by which a migration knows its pods.
const OURS: &str = "migration.ms2m.io/migration";

/// It takes an operator up to so many milliseconds to see that a pod has died, and to store the step
/// that it had decided on before.
const UNSEEN: u64 = 20;

/// After so many milliseconds another operator begins where one was killed.
const SUCCEEDED: u64 = 100;

/// Nothing comes back within the life of the one who asked.
const NEVER: Duration = Duration::from_hours(24);

impl Shop {
    /// Prepares all that is planned; whenever the operator is killed, how many milliseconds pass
    /// until there is another is received.
    pub(super) fn plan_faults(&self) -> UnboundedReceiver<u64> {
        let (kill, kills) = unbounded_channel();
        self.fail_requests(kill.clone());
        self.fail_broker_calls(kill.clone());
        for fault in self.plan.faults.clone() {
            let (shop, kill) = (self.clone(), kill.clone());
            match fault {
                Fault::World(at, fault) => {
                    tokio::spawn(async move { shop.happen(at, fault, kill).await });
                }
                Fault::WatchesCut(at) => {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(at)).await;
                        shop.note(|| "FAULT watches are cut".to_owned());
                        shop.kube.cut_watches(None);
                        shop.kube.forget_history();
                    });
                }
                Fault::Forced(at) => {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(at)).await;
                        shop.force();
                    });
                }
                Fault::Recreated(at) => {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(at)).await;
                        shop.force();
                        let _ = shop.kube.create(wish(&shop.source, "move", &shop.plan.scenario));
                    });
                }
                Fault::Abandoned(at) => {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(at)).await;
                        shop.end_operators();
                        shop.force();
                        let _ = kill.send(SUCCEEDED);
                    });
                }
                Fault::NodeAway { targets, at, lasts } => {
                    let lasts = Duration::from_millis(lasts);
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(at)).await;
                        shop.away(targets, lasts).await;
                    });
                }
                Fault::Isolated(at, lasts) => {
                    let lasts = Duration::from_millis(lasts);
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(at)).await;
                        shop.isolate(lasts).await;
                    });
                }
                Fault::PodsSeenLate(at, lasts) => {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(at)).await;
                        shop.note(|| format!("FAULT pods are seen {lasts} ms later"));
                        shop.kube.hide_pods(lasts);
                    });
                }
                Fault::LeaseDeleted(at) => {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(at)).await;
                        shop.note(|| "FAULT the Lease is deleted".to_owned());
                        let lease = Key::new("leases", "ms2m-system", LEASE);
                        let _ = shop.kube.store(|it| it.delete(&lease, &Deletion::default()));
                    });
                }
                Fault::Request(..)
                | Fault::Broker(..)
                | Fault::Killed { .. }
                | Fault::ApiDown(..) => {}
            }
        }
        kills
    }

    fn fail_requests(&self, kill: UnboundedSender<u64>) {
        let shop = self.clone();
        let mut count = 0;
        let asked = clock::now();
        self.kube.set_faults(Box::new(move |call: &kube::Call| {
            if shop.notes().isolated.contains(&call.client) {
                return Fate::Refuse(Failure::Reset);
            }
            if let Some(refusal) = (shop.rights)(call) {
                return Fate::Refuse(Failure::Answer(refusal));
            }
            if call.verb == Verb::Watch {
                return Fate::Pass;
            }
            let (nth, now) = (count, clock::now().since(asked));
            count += 1;
            shop.note(|| {
                let sub = call.subresource.as_deref().unwrap_or_default();
                let name = call.name.as_deref().unwrap_or_default();
                // The machine's clock names events; the same plan is the same log.
                let name = if call.plural == "events" { "" } else { name };
                format!("   {nth}: {:?} {} {name} {sub}", call.verb, call.plural)
            });
            let creates = call.verb == Verb::Create && call.plural == "pods";
            if creates && clock::now().0 < shop.notes().silent_until {
                let silent = Refusal::internal("failed calling webhook: context deadline exceeded");
                return Fate::Refuse(Failure::Answer(silent));
            }
            for fault in &shop.plan.faults {
                let fate = match *fault {
                    Fault::Request(at, fault) if at == nth => fate(fault, call.verb),
                    Fault::Killed { at: Call::Request(at), reaches, away } if at == nth => {
                        // Nobody is left to receive it once the run is over.
                        let _ = kill.send(away);
                        let never = Failure::Silence(NEVER);
                        if reaches { Fate::Lose(never) } else { Fate::Refuse(never) }
                    }
                    Fault::ApiDown(at, lasts) if (at..at + lasts).contains(&now) => {
                        Fate::Refuse(Failure::Reset)
                    }
                    _ => continue,
                };
                shop.note(|| format!("FAULT {fault:?} {fate:?}"));
                return fate;
            }
            Fate::Pass
        }));
    }

    fn fail_broker_calls(&self, kill: UnboundedSender<u64>) {
        let shop = self.clone();
        let count = std::sync::atomic::AtomicU64::new(0);
        self.applications.broker.set_hook(Arc::new(move |call: &memory::Call<'_>| {
            let nth = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if shop.plan.scenario.alone() {
                let asked = format!("a broker is asked: {:?}", call.operation);
                shop.notes().violations.push(asked);
            }
            if shop.applications.works().down_until > Instant::now() {
                return memory::Fault::Cut;
            }
            if call.migration == janitor::NAME {
                shop.watch_the_janitor(&call.operation);
            }
            if let memory::Operation::Apply(_) | memory::Operation::Order(_) = call.operation {
                shop.note(|| format!("   broker {nth}: {:?}", call.operation));
            }
            for fault in &shop.plan.faults {
                let fate = match *fault {
                    Fault::Broker(at, fault) if at == nth => fault,
                    Fault::Killed { at: Call::Broker(at), reaches, away } if at == nth => {
                        let _ = kill.send(away);
                        memory::Fault::Silence { done: reaches }
                    }
                    _ => continue,
                };
                shop.note(|| format!("FAULT {fault:?} at broker {nth}: {:?}", call.operation));
                return fate;
            }
            memory::Fault::Pass
        }));
    }

    /// It deletes nothing that somebody could still apply, and moves nothing.
    fn watch_the_janitor(&self, operation: &memory::Operation<'_>) {
        let memory::Operation::Apply(change) = operation else { return };
        let name = match change {
            Topology::DeleteQueue { name } => name,
            Topology::Purge { .. } | Topology::Move { .. } => {
                return self.notes().violations.push(format!("the janitor did {change:?}"));
            }
            _ => return,
        };
        let held = self.applications.broker.quietly(|core| core.figures(name));
        let held = held.map_or(0, |it| it.ready + it.unacknowledged);
        if held > 0 && listener(name).is_none() {
            let deleted = format!("the janitor deleted {name}, which held {held} messages");
            self.notes().violations.push(deleted);
        }
    }

    /// Whoever works by then goes on believing that it leads, until it notices.
    async fn isolate(&self, lasts: Duration) {
        let before: Vec<String> = self.notes().operators.clone();
        self.note(|| format!("FAULT {before:?} are isolated"));
        self.notes().isolated.extend(before.clone());
        self.kube.cut_watches(None);
        self.start_operator();
        sleep(lasts).await;
        self.note(|| format!("{before:?} are back"));
        self.notes().isolated.retain(|name| !before.contains(name));
    }

    /// The object goes, whatever holds it.
    pub(super) fn force(&self) {
        let step = self.state("move").map(|state| state.phase.step());
        self.note(|| format!("FAULT the object is removed by force, at {step:?}"));
        let key = Key::new("statefulmigrations", NAMESPACE, "move");
        let _ = self.kube.store(|store| {
            store.modify(&key, |object| object["metadata"]["finalizers"] = serde_json::json!([]));
            store.delete(&key, &Deletion::default())
        });
    }

    async fn away(&self, targets: bool, lasts: Duration) {
        let node = NODES[usize::from(targets)];
        self.note(|| format!("FAULT {node} is away"));
        self.kube.set_node_away(node, true);
        sleep(lasts).await;
        self.note(|| format!("{node} is back"));
        self.kube.set_node_away(node, false);
    }

    async fn happen(self, at: u64, fault: WorldFault, kill: UnboundedSender<u64>) {
        sleep(Duration::from_millis(at)).await;
        if self.state("move").is_some_and(|state| state.phase.is_final()) {
            return;
        }
        let nowhere = fault.is_at_broker() && fault != WorldFault::SecondMigration;
        if nowhere && self.plan.scenario.alone() {
            return;
        }
        self.note(|| format!("FAULT {fault:?}"));
        let applications = &self.applications;
        // Whatever lasts, lasts for so long.
        let lasts = Duration::from_millis(500 + at % 7_000);
        match fault {
            WorldFault::SourceRestarts => self.source_dies(true),
            WorldFault::SourceGone => self.source_dies(false),
            WorldFault::TargetEnds => self.target_dies(true, at),
            WorldFault::TargetGone => self.target_dies(false, at),
            WorldFault::BrokerRestarts => self.broker_restarts(lasts),
            WorldFault::ApplicationsCutOff => self.cut_off(),
            WorldFault::OperatorCrashes => {
                let _ = kill.send(at % 10_000);
            }
            WorldFault::SourceNodeGone => self.away(false, lasts).await,
            WorldFault::TargetNodeGone => self.away(true, lasts).await,
            // A push that fails is all that the operator sees of it.
            WorldFault::ArchiveTruncated | WorldFault::PushFails => {
                applications.works().push_fails = true;
            }
            WorldFault::RestoreFails => applications.works().restore_fails = true,
            WorldFault::Intruder => self.intrude(lasts).await,
            WorldFault::Alarm => {
                applications.broker.with(Broker::raise_alarm);
                sleep(lasts).await;
                applications.broker.with(Broker::lift_alarm);
            }
            WorldFault::SessionLost => self.close(|label| label.starts_with("shadow/")),
            WorldFault::SecondMigration => {
                let _ = self.kube.create(wish(&self.source, "move-2", &self.plan.scenario));
            }
            WorldFault::QueuesBlind => {
                self.blind(true);
                sleep(lasts).await;
                self.blind(false);
            }
            WorldFault::Transaction => {
                // It trails whatever cut comes meanwhile, for less than is waited for.
                self.notes().excuses.flooded = true;
                let lasts = Duration::from_millis(100 + at % 1_700);
                applications.clone().transact(lasts).await;
            }
            WorldFault::AdmissionSilent => {
                self.notes().silent_until = clock::now().0 + 500 + at % 7_000;
            }
            // Nothing trails here.
            WorldFault::Flood => {}
            WorldFault::Abort => self.abort(),
            WorldFault::Delete => {
                let key = Key::new("statefulmigrations", NAMESPACE, "move");
                let _ = self.kube.store(|store| store.delete(&key, &Deletion::default()));
            }
        }
    }

    /// The container of a pod ends at once.
    fn stop(&self, pod: &str) {
        let works = self.applications.works();
        let found = works.running.iter().find(|(_, it)| it.pod == pod);
        let Some(id) = found.map(|(id, _)| id.clone()) else { return };
        drop(works);
        self.applications.end(&id);
    }

    /// A fresh process goes on where this one's acknowledgements end.
    fn bereave(&self, pod: &str) {
        let mut works = self.applications.works();
        let found = works.running.values().find(|it| it.pod == pod);
        if let Some(base) = found.map(|it| it.process.acknowledged()) {
            works.base = base;
        }
        self.notes().excuses.bereaved = true;
    }

    fn dies(&self, pod: &str, ends: bool) {
        self.stop(pod);
        self.notes().died.insert(pod.to_owned(), clock::now());
        if ends {
            self.kube.crash(NAMESPACE, pod, CONTAINER, 1);
        } else {
            let now = Deletion { grace: Some(0), ..Deletion::default() };
            let _ = self.kube.store(|store| store.delete(&Key::new("pods", NAMESPACE, pod), &now));
        }
    }

    fn source_dies(&self, restarts: bool) {
        // Nobody would notice.
        if self.state("move").as_ref().is_some_and(committed) {
            return;
        }
        let source = self.kube.get("pods", NAMESPACE, &self.source);
        // A copy may bear its name.
        if source.is_some_and(|pod| !ours(&pod)) {
            self.bereave(&self.source);
            self.dies(&self.source, restarts);
        }
    }

    /// The copies that run, by their pods.
    fn copies(&self) -> Vec<String> {
        let pods = self.kube.all("pods").into_iter().filter(|pod| ours(pod));
        let names = pods.filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned()));
        let works = self.applications.works();
        names.filter(|name| works.running.values().any(|it| it.pod == *name)).collect()
    }

    fn target_dies(&self, ends: bool, at: u64) {
        let copies = self.copies();
        let Some(state) = self.state("move") else { return };
        // A second hop has two; either may be it.
        let one = usize::try_from(at).unwrap_or_default() % copies.len().max(1);
        let Some(copy) = copies.get(one) else { return };
        // With the source on its way out, or about to be, it is the workload's own crash.
        let alone = copies.len() == 1 && self.has_made_room() && !restorable(&state, copy);
        if committed(&state) || replacing(&state) || alone {
            self.notes().excuses.forgiven = true;
            self.bereave(copy);
        }
        self.dies(copy, ends);
    }

    /// The source is about to go. If its copy has died so shortly before that nobody could have known,
    /// it is as if it had died thereafter.
    pub(super) fn switches(&self, state: &State) {
        let copy = state.phase.plan().map(|plan| plan.target_pod.as_str()).unwrap_or_default();
        let mut notes = self.notes();
        let unseen = notes.died.get(copy).is_some_and(|at| clock::now().since(*at) <= UNSEEN);
        if replacing(state) && unseen {
            (notes.excuses.bereaved, notes.excuses.forgiven) = (true, true);
        }
    }

    /// The first hop's source is gone, and its name is for the second's copy.
    fn has_made_room(&self) -> bool {
        let source = self.kube.get("pods", NAMESPACE, &self.source);
        let gone = source.is_none_or(|pod| pod["metadata"]["uid"] != self.source_uid);
        self.plan.scenario.swap != IdentitySwap::None && gone
    }

    fn broker_restarts(&self, lasts: Duration) {
        self.applications.forget_unconfirmed();
        self.applications.works().down_until = Instant::now() + lasts;
        self.applications.broker.with(Broker::restart);
        self.excuse_cut_off();
        let applications = self.applications.clone();
        tokio::spawn(async move {
            sleep(lasts).await;
            applications.broker.with(|_| {});
        });
    }

    /// The applications' connections end.
    fn cut_off(&self) {
        self.excuse_cut_off();
        self.close(|label| !label.starts_with("shadow/") && label != "publisher");
    }

    /// Whoever goes to its own queue, or binds it again, when it connects defeats the cuts: it is
    /// noticed and undone, but what it took in between is applied twice.
    fn excuse_cut_off(&self) {
        let habits = self.plan.scenario.habits;
        let state = self.state("move");
        let touched = state.as_ref().is_some_and(|state| state.phase.plan().is_some());
        let mut notes = self.notes();
        let excuses = &mut notes.excuses;
        excuses.strayed |= touched && (habits.rebinds || !habits.remembers);
        excuses.overtaken |= state.as_ref().is_some_and(under_way);
        // The one hole that is left: a forgetful source, cut off while it is on its way out.
        excuses.forgiven |= !habits.remembers && state.as_ref().is_some_and(replacing);
    }

    fn close(&self, whose: impl Fn(&str) -> bool) {
        self.applications.broker.with(|core| {
            let theirs = core.connections().filter(|(.., label)| whose(label));
            let theirs: Vec<_> = theirs.map(|(id, ..)| id).collect();
            for connection in theirs {
                core.close_by_broker(connection);
            }
        });
    }

    /// Somebody else consumes the queue, takes a message and gives it back when it leaves.
    async fn intrude(&self, stays: Duration) {
        let broker = &self.applications.broker;
        let intruder = broker.with(|core| {
            let intruder = core.connect("10.9.0.2", "intruder");
            let options = ConsumeOptions { prefetch: 1, ..ConsumeOptions::default() };
            if let Ok(consumer) = core.consume(intruder, QUEUE, options) {
                let _ = core.take(consumer, 1);
            }
            intruder
        });
        self.notes().excuses.intruded = true;
        sleep(stays).await;
        broker.with(|core| core.close(intruder));
    }

    fn blind(&self, blind: bool) {
        self.applications.broker.with(|core| {
            let queues: Vec<_> = core.queue_names().cloned().collect();
            for queue in queues {
                core.set_blind(&queue, blind);
            }
        });
    }
}

/// A copy, as opposed to the pod that it was taken from.
fn ours(pod: &Value) -> bool {
    pod["metadata"]["labels"][OURS] == "move"
}

/// Whether the checkpoint of a second hop takes the place of a copy that dies: nothing that was made
/// from it has run yet.
fn restorable(state: &State, copy: &str) -> bool {
    let target = state.phase.plan().map(|plan| plan.target_pod.as_str());
    checkpointed(state) && target != Some(copy)
}

fn fate(fault: RequestFault, verb: Verb) -> Fate {
    let refuse = |refusal| Fate::Refuse(Failure::Answer(refusal));
    match fault {
        RequestFault::Conflict if verb.writes() => {
            refuse(Refusal::conflict("the object has been modified"))
        }
        RequestFault::Busy => refuse(Refusal::busy()),
        RequestFault::Conflict | RequestFault::Internal => {
            refuse(Refusal::internal("etcdserver: leader changed"))
        }
        RequestFault::Timeout => refuse(Refusal::timeout()),
        RequestFault::Reset => Fate::Refuse(Failure::Reset),
        RequestFault::Lost => Fate::Lose(Failure::Reset),
        RequestFault::LostToTimeout => Fate::Lose(Failure::Answer(Refusal::timeout())),
        RequestFault::Silence(true) => Fate::Lose(Failure::Silence(Duration::from_secs(30))),
        RequestFault::Silence(false) => Fate::Refuse(Failure::Silence(Duration::from_secs(30))),
        RequestFault::Twice => Fate::Twice,
        RequestFault::Late(millis) => Fate::Late(Duration::from_millis(millis)),
    }
}
