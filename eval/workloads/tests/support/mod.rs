//! A private `RabbitMQ` on loopback, and the workload's processes.

pub mod client;
pub mod http;
pub mod node;
pub mod process;

use std::net::TcpListener;
use std::time::{Duration, Instant};

/// Until when something expected must have happened.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// Waits until `check` gives a value; panics with `what` and its last complaint at the deadline.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match check().await {
            Ok(value) => return value,
            Err(complaint) if started.elapsed() > DEADLINE => panic!("{what}: {complaint}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A port that is free just now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    listener.local_addr().expect("its address").port()
}
