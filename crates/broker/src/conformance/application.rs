//! Publishers and applications as tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ledger::payload;
use super::{Consumer, Failure, Ledger, Received, Rig, eventually};

/// Publishers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    counts: Vec<Arc<AtomicU64>>,
    tasks: Vec<JoinHandle<Result<(u32, u64), Failure>>>,
}

impl Load {
    /// Starts `publishers`, numbered from `first`, each pausing for `pause` between messages.
    pub async fn start(
        rig: &Arc<dyn Rig>,
        (exchange, key): (&str, &str),
        publishers: std::ops::Range<u32>,
        confirms: bool,
        pause: Duration,
    ) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut counts, mut tasks) = (Vec::new(), Vec::new());
        for number in publishers {
            let mut publisher = rig.publisher(exchange, key, confirms).await?;
            let (stop, count) = (Arc::clone(&stop), Arc::new(AtomicU64::new(0)));
            counts.push(Arc::clone(&count));
            tasks.push(tokio::spawn(async move {
                let mut sequence = 0;
                while !stop.load(Ordering::Relaxed) {
                    publisher.publish(&payload(number, sequence + 1)).await?;
                    sequence += 1;
                    count.store(sequence, Ordering::Relaxed);
                    if pause.is_zero() {
                        tokio::task::yield_now().await;
                    } else {
                        tokio::time::sleep(pause).await;
                    }
                }
                Ok((number, sequence))
            }));
        }
        Ok(Self { stop, counts, tasks })
    }

    /// Waits until whatever was published before this call is in the queues it was routed to:
    /// each publisher has had two more confirms, so what it sent under an earlier routing too.
    pub async fn settle(&self) -> Result<(), Failure> {
        let read = |count: &Arc<AtomicU64>| count.load(Ordering::Relaxed);
        let due: Vec<u64> = self.counts.iter().map(|count| read(count) + 2).collect();
        let all = async || Ok(self.counts.iter().zip(&due).all(|(count, due)| read(count) >= *due));
        eventually("every publisher goes on", all).await.map(|_| ())
    }

    /// Stops; how many messages each publisher has published.
    pub async fn stop(self) -> Result<BTreeMap<u32, u64>, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let mut published = BTreeMap::new();
        for task in self.tasks {
            let (number, count) = task.await??;
            published.insert(number, count);
        }
        Ok(published)
    }
}

/// A copy of an application: applies what it consumes to its ledger, acknowledges, obeys.
pub struct Application {
    ledger: Arc<Mutex<Ledger>>,
    settled: Arc<Mutex<Instant>>,
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<Result<(), Failure>>,
}

/// How an application works.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Unacknowledged messages at most.
    pub prefetch: u16,
    /// Messages per acknowledgement; what is left over is acknowledged after a pause.
    pub batch: u16,
    /// Work per message.
    pub service: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self { prefetch: 10, batch: 1, service: Duration::ZERO }
    }
}

/// How long an application waits for the rest of a batch.
const BATCH_PAUSE: Duration = Duration::from_millis(40);

enum Order {
    /// Cancel, finish and acknowledge, then consume this queue.
    Go(String, oneshot::Sender<()>),
    /// Die, without a word to the broker but the connection's end.
    Die,
}

impl Application {
    /// Starts a copy on `queue` with the state `ledger`.
    pub async fn start(
        rig: &Arc<dyn Rig>,
        queue: &str,
        habits: Habits,
        ledger: Ledger,
    ) -> Result<Self, Failure> {
        let ledger = Arc::new(Mutex::new(ledger));
        let (orders, inbox) = mpsc::unbounded_channel();
        let consumer = rig.consumer(queue, habits.prefetch).await?;
        let settled = Arc::new(Mutex::new(Instant::now()));
        let copy = Copy {
            rig: Arc::clone(rig),
            ledger: Arc::clone(&ledger),
            settled: Arc::clone(&settled),
            habits,
            held: None,
        };
        Ok(Self { ledger, settled, orders, task: tokio::spawn(copy.live(consumer, inbox)) })
    }

    /// Sends it to another queue and waits until it consumes there.
    pub async fn go(&self, queue: &str) -> Result<(), Failure> {
        let (done, arrived) = oneshot::channel();
        let gone = || Failure("the application has ended".to_owned());
        self.orders.send(Order::Go(queue.to_owned(), done)).map_err(|_| gone())?;
        arrived.await.map_err(|_| gone())
    }

    /// Its state at this moment.
    pub fn snapshot(&self) -> Ledger {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When it acknowledged last.
    pub fn settled_at(&self) -> Instant {
        *self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills it; its last state.
    pub async fn die(self) -> Result<Ledger, Failure> {
        // Ended already: its own failure says why.
        let _ = self.orders.send(Order::Die);
        self.task.await??;
        Ok(self.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

struct Copy {
    rig: Arc<dyn Rig>,
    ledger: Arc<Mutex<Ledger>>,
    settled: Arc<Mutex<Instant>>,
    habits: Habits,
    /// Last message applied and not acknowledged, and how many there are.
    held: Option<(u64, u16)>,
}

impl Copy {
    async fn live(
        mut self,
        mut consumer: Box<dyn Consumer>,
        mut inbox: mpsc::UnboundedReceiver<Order>,
    ) -> Result<(), Failure> {
        loop {
            let pause = tokio::time::sleep(BATCH_PAUSE);
            tokio::select! {
                next = consumer.next() => match next? {
                    Some(message) => self.take(consumer.as_mut(), &message).await?,
                    None => return Err(Failure("the broker cancelled an application".to_owned())),
                },
                () = pause, if self.held.is_some() => self.settle(consumer.as_mut()).await?,
                order = inbox.recv() => match order {
                    Some(Order::Go(queue, done)) => {
                        consumer = self.move_on(consumer, &queue).await?;
                        // Nobody waits: fine.
                        let _ = done.send(());
                    }
                    Some(Order::Die) | None => {
                        consumer.close().await;
                        return Ok(());
                    }
                },
            }
        }
    }

    async fn move_on(
        &mut self,
        mut consumer: Box<dyn Consumer>,
        queue: &str,
    ) -> Result<Box<dyn Consumer>, Failure> {
        consumer.cancel().await?;
        while let Some(message) = consumer.next().await? {
            self.take(consumer.as_mut(), &message).await?;
        }
        self.settle(consumer.as_mut()).await?;
        consumer.close().await;
        self.rig.consumer(queue, self.habits.prefetch).await
    }

    async fn take(
        &mut self,
        consumer: &mut dyn Consumer,
        message: &Received,
    ) -> Result<(), Failure> {
        if !self.habits.service.is_zero() {
            tokio::time::sleep(self.habits.service).await;
        }
        {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.apply(&message.payload);
        }
        let held = self.held.map_or(1, |(_, count)| count + 1);
        self.held = Some((message.tag, held));
        if held >= self.habits.batch { self.settle(consumer).await } else { Ok(()) }
    }

    async fn settle(&mut self, consumer: &mut dyn Consumer) -> Result<(), Failure> {
        match self.held.take() {
            Some((tag, count)) => {
                // Before the acknowledgement leaves, so that no proof of it can be earlier.
                *self.settled.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                consumer.ack(tag, count > 1).await
            }
            None => Ok(()),
        }
    }
}
