//! The conformance suite on a real RabbitMQ, and what only a real one can show.
//!
//! `SHADOW_TEST_AMQP_URL` and `SHADOW_TEST_MANAGEMENT_URL` say where it is, and
//! `SHADOW_TEST_RABBITMQCTL` how to call `rabbitmqctl` there (a command and its first arguments).
//! What is missing is skipped in one line, and a failure where `CI=true`.
#![expect(clippy::expect_used, reason = "a test's own helpers")]

#[path = "rabbitmq/alarm.rs"]
mod alarm;
#[path = "rabbitmq/claims.rs"]
mod claims;
#[path = "rabbitmq/proxy.rs"]
mod proxy;
#[path = "rabbitmq/raw.rs"]
mod raw;
#[path = "rabbitmq/rig.rs"]
mod rig;

use std::sync::Arc;

use rig::RabbitRig;
use shadow_broker::conformance::{self, Stage};
use tokio::sync::Mutex;

/// An alarm or a flood concerns the whole broker: nothing else may be under way.
static BROKER: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn conformance_suite() {
    let Some(rig) = RabbitRig::from_env() else { return };
    let _turn = BROKER.lock().await;
    let only = std::env::var("SHADOW_TEST_ONLY").unwrap_or_default();
    let mut cases = claims::cases();
    cases.extend(conformance::cases());
    cases.retain(|case| case.name.contains(&only));
    let (lines, failed) = conformance::run(Arc::new(rig), cases).await;
    for line in lines {
        println!("{line}");
    }
    assert_eq!(failed, 0, "cases failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn flooded() {
    let Some(rig) = RabbitRig::from_env() else { return };
    let _turn = BROKER.lock().await;
    let stage = Stage { rig: Arc::new(rig.clone()), prefix: "flooded".to_owned() };
    println!("{}", claims::trailing(rig, stage).await.map_err(|failure| failure.0).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn under_an_alarm() {
    let Some(rig) = RabbitRig::from_env() else { return };
    let Some(command) = rig::variable("SHADOW_TEST_RABBITMQCTL") else { return };
    let _turn = BROKER.lock().await;
    let stage = Stage { rig: Arc::new(rig.clone()), prefix: "alarm".to_owned() };
    println!("{}", alarm::alarm(rig, stage, &command).await.map_err(|failure| failure.0).unwrap());
}
