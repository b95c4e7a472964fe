//! The conformance suite on a real RabbitMQ, and what only a real one can show.
//!
//! `SHADOW_TEST_AMQP_URL` and `SHADOW_TEST_MANAGEMENT_URL` say where it is, and
//! `SHADOW_TEST_RABBITMQCTL` how to call `rabbitmqctl` there (a command and its first arguments).
//! What is missing is skipped in one line, and a failure where `CI=true`.
#![cfg(feature = "conformance")]

#[path = "rabbitmq/rig.rs"]
mod rig;

use std::sync::Arc;

use rig::RabbitRig;
use shadow_broker::conformance;

#[tokio::test(flavor = "multi_thread")]
async fn conformance_suite() {
    let Some(rig) = RabbitRig::from_env() else { return };
    let only = std::env::var("SHADOW_TEST_ONLY").unwrap_or_default();
    let mut cases = conformance::cases();
    cases.retain(|case| case.name.contains(&only));
    let (lines, failed) = conformance::run(Arc::new(rig), cases).await;
    for line in lines {
        println!("{line}");
    }
    assert_eq!(failed, 0, "cases failed");
}
