//! A file on its way into an upload: read once, hashed while it is sent, a few pieces in memory.
//!
//! The file goes out in parts, in order. What is sent again, because an upload broke off, is read again
//! but not hashed again: the hash has its own place in the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
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
const PIECE: usize = 1 << 20;
const AHEAD: usize = 4;
/// How long one more piece may take to read.
const LAST_PIECE: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Reading {
    /// Size of the file in bytes.
    pub size: u64,
    file: File,
    hash: Sha256,
    /// Up to where it is hashed.
    hashed: u64,
}

impl Reading {
    /// Begins to read the file at `path`.
    pub(crate) async fn begin(path: &Path) -> io::Result<Self> {
        let file = tokio::fs::File::open(path).await?;
        let size = file.metadata().await?.len();
        Ok(Self { size, file: file.into_std().await, hash: Sha256::new(), hashed: 0 })
    }

    /// The digest, once all of it was read.
    pub(crate) fn digest(&self) -> Option<String> {
        let whole = self.hashed == self.size;
        whole.then(|| format!("sha256:{:x}", self.hash.clone().finalize()))
    }

    /// Reads the bytes in `range`. A thread reads and hashes, so that neither waits for the network as
    /// long as there is room.
    pub(crate) fn part(mut self, range: Range<u64>) -> Part {
        let (room, pieces) = mpsc::channel(AHEAD);
        let reader = tokio::task::spawn_blocking(move || {
            let read = self.read(&range, &room);
            (self, read)
        });
        Part { taken: Arc::default(), pieces: Some(pieces), reader }
    }

    fn read(
        &mut self,
        range: &Range<u64>,
        room: &mpsc::Sender<io::Result<Bytes>>,
    ) -> io::Result<()> {
        // The hash may be behind, if an earlier reading was lost.
        let mut at = range.start.min(self.hashed);
        while at < range.end {
            let until = if at < range.start { range.start } else { range.end };
            let length = usize::try_from(until - at).unwrap_or(PIECE).min(PIECE);
            let mut piece = BytesMut::zeroed(length);
            if let Err(error) = self.file.read_exact_at(&mut piece, at) {
                // Breaks the upload off: the registry must not take what there is for all.
                let _ = room.blocking_send(Err(error.kind().into()));
                return Err(error);
            }
            let known = usize::try_from(self.hashed - at).unwrap_or(length).min(length);
            self.hash.update(&piece[known..]);
            let wanted = at >= range.start;
            at += length as u64;
            self.hashed = self.hashed.max(at);
            if wanted && room.blocking_send(Ok(piece.freeze())).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// A part on its way.
pub(crate) struct Part {
    /// Bytes handed to the network so far.
    pub taken: Arc<AtomicU64>,
    pieces: Option<mpsc::Receiver<io::Result<Bytes>>>,
    reader: JoinHandle<(Reading, io::Result<()>)>,
}

impl Part {
    /// The content, once.
    pub(crate) fn body(&mut self) -> Body {
        let taken = self.taken.clone();
        let frames = stream::unfold(self.pieces.take(), move |pieces| {
            let taken = taken.clone();
            async move {
                let mut pieces = pieces?;
                let piece = pieces.recv().await?;
                if let Ok(piece) = &piece {
                    taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
                Some((piece.map(Frame::data), Some(pieces)))
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// The reading, to go on with, when the part was sent or broke off: the reader has ended too, or
    /// does as soon as the connection lets go of the content. None if it does not.
    pub(crate) async fn end(self) -> io::Result<Option<Reading>> {
        drop(self.pieces);
        match tokio::time::timeout(LAST_PIECE, self.reader).await {
            Ok(Ok((reading, read))) => read.map(|()| Some(reading)),
            _ => Ok(None),
        }
    }
}

/// The blob that the file at `path` would be. Blocking.
pub fn blob_of_file(path: &Path) -> io::Result<super::Blob> {
    let mut hash = Sha256::new();
    let size = io::copy(&mut io::BufReader::with_capacity(PIECE, File::open(path)?), &mut hash)?;
    Ok(super::Blob { digest: format!("sha256:{:x}", hash.finalize()), size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a part; the reader is left after `pieces` of it.
    async fn read(reading: Reading, range: Range<u64>, pieces: usize) -> (Reading, Vec<u8>) {
        let mut part = reading.part(range);
        let mut body = part.body();
        let mut content = Vec::new();
        for _ in 0..pieces {
            let Some(frame) = body.frame().await else { break };
            content.extend(frame.unwrap().into_data().unwrap());
        }
        drop(body);
        (part.end().await.unwrap().unwrap(), content)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn what_is_read_again_is_not_hashed_again(
            size in 1usize..(3 * PIECE),
            ranges in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..4), 0..4),
        ) {
            let content: Vec<u8> = (0..251).cycle().take(size).collect();
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &content).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            runtime.unwrap().block_on(async {
                let mut reading = Reading::begin(file.path()).await.unwrap();
                for (start, pieces) in ranges {
                    let start = start.index(size);
                    let (back, found) = read(reading, start as u64..size as u64, pieces).await;
                    assert_eq!(found, content[start..start + found.len()]);
                    reading = back;
                }
                let (reading, _) = read(reading, size as u64 - 1..size as u64, 2).await;
                assert_eq!(reading.digest(), Some(crate::registry::digest(&content)));
            });
        }
    }
}
