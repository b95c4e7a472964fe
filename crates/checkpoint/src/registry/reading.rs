//! A file on its way into an upload: read once, hashed while it is sent, a few chunks in memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Body;

/// How much is read at once, and how many of these may wait for the network.
const CHUNK: usize = 1 << 20;
const AHEAD: usize = 4;
/// How long one more chunk may take to read.
const LAST_CHUNK: Duration = Duration::from_secs(5);

/// How a reading ended.
pub(crate) enum Ended {
    /// Everything was read and taken; this is the digest.
    Whole(String),
    /// The file can't be read, or became shorter.
    Failed(io::Error),
    /// The upload ended first.
    Abandoned,
}

/// See the module.
pub(crate) struct Reading {
    /// Size of the file in bytes.
    pub size: u64,
    /// Bytes handed to the network so far.
    pub taken: Arc<AtomicU64>,
    chunks: Option<mpsc::Receiver<io::Result<Bytes>>>,
    reader: JoinHandle<Ended>,
}

impl Reading {
    /// Begins to read the file at `path`. A thread reads and hashes, so that neither waits for the
    /// network as long as there is room.
    pub(crate) async fn begin(path: &Path) -> io::Result<Self> {
        let file = tokio::fs::File::open(path).await?;
        let size = file.metadata().await?.len();
        let file = file.into_std().await;
        let (room, chunks) = mpsc::channel(AHEAD);
        let reader = tokio::task::spawn_blocking(move || read(file, size, &room));
        Ok(Self { size, taken: Arc::default(), chunks: Some(chunks), reader })
    }

    /// The content, once.
    pub(crate) fn body(&mut self) -> Body {
        let taken = self.taken.clone();
        let frames = stream::unfold(self.chunks.take(), move |chunks| {
            let taken = taken.clone();
            async move {
                let mut chunks = chunks?;
                let chunk = chunks.recv().await?;
                if let Ok(chunk) = &chunk {
                    taken.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                }
                Some((chunk.map(Frame::data), Some(chunks)))
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// What came of it, when the upload has ended either way: the reader has ended too, or does as
    /// soon as the connection lets go of the content.
    pub(crate) async fn end(self) -> Ended {
        drop(self.chunks);
        match tokio::time::timeout(LAST_CHUNK, self.reader).await {
            Ok(Ok(ended)) => ended,
            _ => Ended::Abandoned,
        }
    }
}

fn read(mut file: File, size: u64, room: &mpsc::Sender<io::Result<Bytes>>) -> Ended {
    let mut hash = Sha256::new();
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let mut chunk = BytesMut::zeroed(length);
        if let Err(error) = file.read_exact(&mut chunk) {
            // Breaks the upload off: the registry must not take what there is for all.
            let _ = room.blocking_send(Err(error.kind().into()));
            return Ended::Failed(error);
        }
        hash.update(&chunk);
        if room.blocking_send(Ok(chunk.freeze())).is_err() {
            return Ended::Abandoned;
        }
        left -= length as u64;
    }
    Ended::Whole(format!("sha256:{:x}", hash.finalize()))
}

/// The blob that the file at `path` would be. Blocking.
pub fn blob_of_file(path: &Path) -> io::Result<super::Blob> {
    let mut hash = Sha256::new();
    let size = io::copy(&mut io::BufReader::with_capacity(CHUNK, File::open(path)?), &mut hash)?;
    Ok(super::Blob { digest: format!("sha256:{:x}", hash.finalize()), size })
}
