//! An operator that dies at any moment of the barrier never hands a sentinel to the application.

use std::collections::BTreeMap;
use std::time::Duration;

use shadow_broker::Barrier;
use shadow_broker::conformance::{
    Application, Failure, Habits, Ledger, Outcome, Rig, Stage, ensure, eventually,
};
use shadow_broker::rabbitmq::RabbitMq;
use shadow_broker::{Connector, Target};
use shadow_protocol::broker::Topology;

use crate::proxy::{Cut, Proxy};
use crate::rig::RabbitRig;

/// Rounds per lane.
const ROUNDS: usize = 25;
/// Lanes at a time.
const LANES: usize = 4;

/// Kills relative to the sentinel: `(what, cut, must never leak)`. A sentinel follows another every
/// few milliseconds until one arrives, so while the barrier is raised and not proved there is no
/// safe moment; how unsafe it is, is measured.
fn moments() -> Vec<(&'static str, Cut, bool)> {
    let mark = b"shadow.sentinel";
    let ms = Duration::from_millis;
    vec![
        ("as it is sent", Cut::AfterSent(mark, 1, ms(0)), false),
        ("as it arrives", Cut::AfterReceived(mark, 1, ms(0)), false),
        ("7 ms after the first is sent", Cut::AfterSent(mark, 1, ms(7)), false),
        ("before it is sent", Cut::AfterReceived(b"shadow-barrier", 1, ms(0)), true),
        ("once the barrier is proved", Cut::Never, true),
    ]
}

/// Kills an operator at those moments; what was seen of sentinels.
pub async fn kills(rig: RabbitRig) -> Outcome {
    let mut report = Vec::new();
    for (what, cut, safe) in moments() {
        let lane = |lane| tokio::spawn(rounds(rig.clone(), lane, cut, lane % 2 == 0));
        let lanes: Vec<_> = (0..LANES).map(lane).collect();
        let mut seen = 0;
        for lane in lanes {
            seen += lane.await??;
        }
        ensure(!safe || seen == 0, || format!("killed {what}: {seen} sentinels seen"))?;
        report.push(format!("{what}: {seen} of {}", LANES * ROUNDS));
    }
    Ok(format!("sentinels seen by the application, operator killed {}", report.join("; ")))
}

/// One application on one side queue; each round an operator that dies. Returns sentinels seen.
async fn rounds(rig: RabbitRig, lane: usize, cut: Cut, busy: bool) -> Result<u64, Failure> {
    let rig: std::sync::Arc<dyn Rig> = std::sync::Arc::new(rig);
    let stage = Stage { rig: rig.clone(), prefix: format!("kills.{lane}") };
    let queue = stage.name("side");
    rig.remove(&[&queue], &[]).await?;
    let owner = stage.session("owner").await?;
    owner.apply(&Topology::DeclareSideQueue { name: queue.clone() }).await?;
    let habits =
        Habits { service: Duration::from_micros(if busy { 900 } else { 0 }), ..Habits::default() };
    let application = Application::start(&rig, &queue, habits, Ledger::default()).await?;
    let mut publisher = rig.publisher("", &queue, true).await?;
    let mut sequence = 0;
    for _ in 0..ROUNDS {
        for _ in 0..if busy { 12 } else { 1 } {
            sequence += 1;
            publisher.publish(format!("1:{sequence}").as_bytes()).await?;
        }
        let target = rig.target();
        let url = url::Url::parse(&target.url)?;
        let broker = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5672));
        let proxy = Proxy::start(broker, cut).await;
        let mut through = url.clone();
        through.set_host(Some("127.0.0.1")).unwrap();
        through.set_port(Some(proxy.port)).unwrap();
        let through = Target { url: through.to_string(), ..target };
        let doomed = RabbitMq::default().open(&through, "doomed").await?;
        // It dies: whatever it says is as good.
        let barrier = doomed.raise_barrier(&queue, Duration::from_millis(400)).await;
        if let (Cut::Never, Ok(barrier)) = (cut, barrier) {
            ensure(barrier == Barrier::Proved, || format!("the barrier is {barrier:?}"))?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        proxy.cut();
        let applied = async || Ok(application.snapshot().applied() == sequence);
        eventually("the application goes on", applied).await?;
    }
    let ledger = application.die().await?;
    let verdict = ledger.verdict(&BTreeMap::from([(1, sequence)]));
    owner.close().await;
    rig.remove(&[&queue], &[]).await?;
    if verdict.lost + verdict.reordered > 0 {
        return Err(Failure(format!("{verdict:?}")));
    }
    Ok(verdict.sentinels)
}
