//! What runs in the containers of the shop: consumers that live on tokio's clock, the operator's own
//! helpers, and the publishers outside.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;
use shadow_broker::memory::MemoryBroker;
use shadow_broker::memory::core::{ConnectionId, Kind, Name, Publish, Serial, Settings};
use shadow_protocol::broker::Binding;
use tokio::time::{Instant, sleep};

use crate::application::{Ledger, Memory, Process, Surroundings};
use crate::kube::{Application, Life, Start, operators_own};
use crate::message::{Broker, Message, Serials};
use crate::scenario::Scenario;
use crate::world::publishers::turns;
use crate::world::{EXCHANGE, QUEUE, set_up};

/// The applications. Clones are the same ones.
#[derive(Clone)]
pub struct Applications {
    /// The broker that they share with the operator.
    pub broker: MemoryBroker<Message>,
    scenario: Arc<Scenario>,
    works: Arc<Mutex<Works>>,
}

/// All of it.
pub struct Works {
    /// Running consumers by container ID.
    pub running: BTreeMap<String, Running>,
    /// What those have applied that have ended.
    pub ended: Vec<Ledger>,
    archives: BTreeMap<String, Memory>,
    images: BTreeMap<String, Memory>,
    /// What a process knows that begins afresh.
    pub base: Ledger,
    /// What was published, by publisher.
    pub published: Vec<u64>,
    /// What the broker forgot before anybody had it confirmed.
    pub unconfirmed: Serials,
    publishers: Vec<Option<ConnectionId>>,
    /// How many have consumed the queue at the same time.
    pub crowd: usize,
    /// Nobody publishes any more.
    pub closed: bool,
    /// How much the source knew when it ended, where nobody replays it.
    pub last_words: u64,
    /// The broker can't be reached until then.
    pub down_until: Instant,
    /// The next push to the registry fails.
    pub push_fails: bool,
    /// The next restore fails.
    pub restore_fails: bool,
    rng: Rng,
}

/// A consumer in its container.
pub struct Running {
    /// The consumer.
    pub process: Process,
    /// Its pod.
    pub pod: String,
    /// How much its checkpoint knew, if it is a copy.
    pub restored: Option<u64>,
}

/// What a consumer does next.
enum Turn {
    /// There is more to apply.
    Busy,
    /// Until something comes.
    Idle,
    /// Until it connects again.
    Offline(Duration),
}

impl Applications {
    /// No application yet, and the broker with the queue of all of them.
    pub fn new(scenario: &Scenario) -> Self {
        let publishers = usize::from(scenario.publishers) + 1;
        let works = Works {
            running: BTreeMap::new(),
            ended: Vec::new(),
            archives: BTreeMap::new(),
            images: BTreeMap::new(),
            base: Ledger::new(vec![0; publishers]),
            published: vec![0; publishers],
            unconfirmed: Serials::default(),
            publishers: vec![None; publishers],
            crowd: 0,
            closed: false,
            last_words: 0,
            down_until: Instant::now(),
            push_fails: false,
            restore_fails: false,
            rng: Rng::with_seed(scenario.seed),
        };
        let applications = Self {
            broker: MemoryBroker::new(Settings::default()),
            scenario: Arc::new(scenario.clone()),
            works: Arc::new(Mutex::new(works)),
        };
        // A new broker refuses nothing of it.
        let _ = applications.broker.with(|core| set_up(core, scenario.quorum));
        applications
    }

    /// Access to all of it.
    pub fn works(&self) -> MutexGuard<'_, Works> {
        // Nothing panics half-way through a change.
        self.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is applied now, by pod.
    pub fn ledgers(&self) -> BTreeMap<String, Ledger> {
        let works = self.works();
        let running = works.running.values();
        running.map(|it| (it.pod.clone(), it.process.memory.ledger.clone())).collect()
    }

    /// What anybody has ever applied.
    pub fn all_ledgers(&self) -> Vec<Ledger> {
        let works = self.works();
        let running = works.running.values().map(|it| it.process.memory.ledger.clone());
        running.chain(works.ended.iter().cloned()).collect()
    }

    /// A container ends. What its process knows and its checkpoint does not, nobody replays where
    /// there is no queue.
    pub fn end(&self, id: &str) {
        let mut works = self.works();
        let Some(mut dead) = works.running.remove(id) else { return };
        works.ended.push(dead.process.memory.ledger.clone());
        if dead.restored.is_none() {
            works.last_words = works.last_words.max(dead.process.memory.ledger.applied());
        }
        drop(works);
        self.broker.with(|core| dead.process.disconnect(core));
    }

    /// Until the workload consumes its queue, if there is one.
    pub async fn begun(&self) {
        if self.scenario.alone() {
            return;
        }
        let mut changes = self.broker.changes();
        let consumed = |core: &mut Broker| core.counts(QUEUE).is_some_and(|it| it.consumers > 0);
        while !self.broker.quietly(consumed) && changes.changed().await.is_ok() {}
    }

    /// Nobody has anything to apply or to acknowledge.
    pub fn at_rest(&self) -> bool {
        let figures = self.broker.quietly(|core| core.figures(QUEUE));
        figures.is_none_or(|it| it.ready + it.unacknowledged == 0)
    }

    /// Does something to a consumer.
    fn with<T>(
        &self,
        id: &str,
        act: impl FnOnce(&mut Process, &mut Surroundings) -> T,
    ) -> Option<T> {
        let scenario = &self.scenario;
        let mut works = self.works();
        let haste = works.closed;
        let process = &mut works.running.get_mut(id)?.process;
        Some(self.broker.quietly(|core| {
            let mut around = Surroundings {
                broker: core,
                primary: &QUEUE.into(),
                binding: &Binding::plain(EXCHANGE),
                habits: scenario.habits,
                kind: if scenario.quorum { Kind::Quorum } else { Kind::Classic },
                // Nothing else happens any more.
                haste,
            };
            act(process, &mut around)
        }))
    }

    /// A consumer's life, until its container ends.
    async fn live(self, id: String) {
        let habits = self.scenario.habits;
        let mut changes = self.broker.changes();
        sleep(self.soon(habits.reconnect)).await;
        loop {
            changes.borrow_and_update();
            match self.turn(&id) {
                None => return,
                Some(Turn::Busy) => sleep(Duration::from_millis(habits.service.max(1))).await,
                Some(Turn::Offline(wait)) => sleep(wait).await,
                Some(Turn::Idle) => {
                    let _ = changes.changed().await;
                    sleep(Duration::from_millis(habits.attention)).await;
                }
            }
        }
    }

    /// One turn of a consumer; absent when its container has ended.
    fn turn(&self, id: &str) -> Option<Turn> {
        let down = self.works().down_until.saturating_duration_since(Instant::now());
        let again = self.soon(self.scenario.habits.reconnect);
        let late = self.scenario.habits.late_acks;
        let (turn, moved) = self.with(id, |process, around| {
            let before = process.consuming.clone();
            let lost = process.connection.is_some_and(|it| !around.broker.connected(it));
            if lost {
                process.disconnect(around.broker);
                return (Turn::Offline(again), false);
            }
            if process.connection.is_none() && !down.is_zero() {
                return (Turn::Offline(down + again), false);
            }
            if process.connection.is_none() {
                process.connect(around);
            }
            process.look(around);
            let more = process.work(around);
            let turn = if more && !process.frozen { Turn::Busy } else { Turn::Idle };
            (turn, process.consuming != before)
        })?;
        if moved {
            // Others see it come and go.
            self.broker.with(|_| {});
            let mut works = self.works();
            let here = works.running.values().filter(|it| it.process.consumes(&QUEUE.into()));
            works.crowd = works.crowd.max(here.count());
            drop(works);
            if late > 0 {
                tokio::spawn(self.clone().pay(id.to_owned(), Duration::from_millis(late)));
            }
        }
        Some(turn)
    }

    async fn pay(self, id: String, late: Duration) {
        sleep(late).await;
        self.with(&id, |process, around| process.pay(around.broker));
        self.broker.with(|_| {});
    }

    async fn thaw(self, id: String, after: Duration) {
        sleep(after).await;
        self.with(&id, |process, _| process.frozen = false);
        self.broker.with(|_| {});
    }

    fn soon(&self, longest: u64) -> Duration {
        Duration::from_millis(self.works().rng.u64(1..=longest.max(1)))
    }

    /// The messages that wait when the shop opens, the publishers taking turns.
    pub fn pile_up(&self) {
        for (publisher, count) in turns(self.scenario.backlog, self.scenario.publishers) {
            self.publish(usize::from(publisher), count);
        }
    }

    /// A publisher's life.
    pub async fn publish_on(self, publisher: usize) {
        let mut rng = Rng::with_seed(self.scenario.seed ^ (publisher as u64 + 1));
        let interval = self.scenario.interval;
        loop {
            sleep(Duration::from_millis(interval + rng.u64(..=interval / 2))).await;
            let (closed, down) = {
                let works = self.works();
                (works.closed, works.down_until > Instant::now())
            };
            if closed {
                return;
            }
            if !down {
                self.publish(publisher, self.scenario.burst);
            }
        }
    }

    fn publish(&self, publisher: usize, count: u64) {
        if self.scenario.alone() {
            return self.ask(publisher, count);
        }
        let mut works = self.works();
        let (connection, publish) = self.next_publish(&mut works, publisher, count);
        // Under an alarm it arrives when that is over.
        let _ = self.broker.with(|core| core.publish(connection, publish));
    }

    /// Without a queue, who would publish asks the application itself, and what it answers it knows.
    fn ask(&self, publisher: usize, count: u64) {
        let mut works = self.works();
        let sequence = works.published[publisher] + 1;
        let Some(asked) = works.running.values_mut().find(|it| !it.process.frozen) else { return };
        let serial = Serial { publisher: u32::try_from(publisher).unwrap_or(u32::MAX), sequence };
        asked.process.memory.ledger.apply((serial, count));
        works.published[publisher] += count;
    }

    fn next_publish(
        &self,
        works: &mut Works,
        publisher: usize,
        count: u64,
    ) -> (ConnectionId, Publish<Message>) {
        let known = works.publishers[publisher];
        let connection = self.broker.quietly(|core| {
            let alive = known.filter(|it| core.connected(*it));
            alive.unwrap_or_else(|| core.connect("10.9.0.1", "publisher"))
        });
        works.publishers[publisher] = Some(connection);
        let sequence = works.published[publisher] + 1;
        works.published[publisher] += count;
        let serial = Serial { publisher: u32::try_from(publisher).unwrap_or(u32::MAX), sequence };
        let nothing: Name = "".into();
        let publish = Publish {
            exchange: EXCHANGE.into(),
            key: nothing.clone(),
            headers: nothing,
            first: Message::Data(serial),
            count,
        };
        (connection, publish)
    }

    /// Somebody publishes in a transaction that stays open for a while.
    pub async fn transact(self, lasts: Duration) {
        let bookkeeper = usize::from(self.scenario.publishers);
        let begun = {
            let mut works = self.works();
            let (connection, publish) = self.next_publish(&mut works, bookkeeper, 2);
            let begun = self.broker.with(|core| {
                core.select_transaction(connection)?;
                core.publish(connection, publish)
            });
            if begun.is_err() {
                works.published[bookkeeper] -= 2;
            }
            begun.is_ok().then_some(connection)
        };
        let Some(connection) = begun else { return };
        sleep(lasts).await;
        let committed = self.broker.with(|core| {
            let committed = core.commit(connection);
            core.close(connection);
            committed
        });
        if committed.is_err() {
            self.works().published[bookkeeper] -= 2;
        }
    }

    /// What the broker is about to forget with a restart, nobody has had confirmed.
    pub fn forget_unconfirmed(&self) {
        let mut works = self.works();
        self.broker.quietly(|core| remember_unconfirmed(core, &mut works.unconfirmed));
    }

    /// The transfer Job's push, if that is what starts.
    fn helper(&self, start: Start<'_>) -> Option<Life> {
        let takes = Duration::from_millis(self.scenario.transfer);
        let life = operators_own(start, 1_000_000, takes)?;
        let Life::Exits { message, .. } = &life else { return Some(life) };
        let mut works = self.works();
        if std::mem::take(&mut works.push_fails) {
            let message = "the registry answered 500".to_owned();
            return Some(Life::Exits { after: takes, code: 1, message });
        }
        let archive = start.container["args"][1].as_str()?;
        let pushed: Value = serde_json::from_str(message).ok()?;
        let memory = works.archives.get(archive)?.clone();
        works.images.insert(pushed["image"].as_str()?.to_owned(), memory);
        Some(life)
    }
}

fn remember_unconfirmed(core: &Broker, unconfirmed: &mut Serials) {
    for (_, message, count) in core.unconfirmed() {
        if let Message::Data(first) = message {
            unconfirmed.insert((*first, count));
        }
    }
}

impl Application for Applications {
    fn start(&mut self, start: Start<'_>) -> Life {
        if let Some(life) = self.helper(start) {
            return life;
        }
        let pod = start.pod["metadata"]["name"].as_str().unwrap_or_default();
        let image = start.container["image"].as_str().unwrap_or_default();
        let mut works = self.works();
        let memory = match works.images.get(image).cloned() {
            Some(_) if std::mem::take(&mut works.restore_fails) => {
                return Life::Fails { message: "failed to restore container: criu".to_owned() };
            }
            Some(memory) => memory,
            None => Memory { ledger: works.base.clone(), told: None },
        };
        let process = Process::new(memory, pod, start.ip);
        let restored = works.images.get(image).map(|memory| memory.ledger.applied());
        let running = Running { process, pod: pod.to_owned(), restored };
        works.running.insert(start.id.to_owned(), running);
        drop(works);
        if self.scenario.alone() {
            return Life::Runs;
        }
        tokio::spawn(self.clone().live(start.id.to_owned()));
        Life::Runs
    }

    fn ended(&mut self, id: &str) {
        self.end(id);
    }

    fn checkpoint(&mut self, id: &str, archive: &str) -> Result<Duration, String> {
        let takes = Duration::from_millis(self.scenario.checkpoint);
        let memory = self.with(id, |process, _| {
            process.frozen = true;
            process.memory.clone()
        });
        let memory = memory.ok_or("no such container")?;
        self.works().archives.insert(archive.to_owned(), memory);
        tokio::spawn(self.clone().thaw(id.to_owned(), takes));
        Ok(takes)
    }
}
