//! Archives on the node's disks: the kubelet's, and those that came from other nodes.
//!
//! The latter are on the staging disk, sealed: whoever gets at the disk, or at what is left there of
//! removed files, reads nothing. Each has a key of its own, which only this process has, and only as
//! long as the archive is kept; the key goes with an agent that ends, and so does the archive.
//!
//! ```text
//! chunk 0             chunk 1             …   the last one
//! CHUNK bytes + TAG   CHUNK bytes + TAG       what is left + TAG
//! ```
//!
//! AES-256-GCM; the nonce is the chunk's number. No two chunks are sealed with one key and number: an
//! archive is written once, from its beginning to its end. Size and digest are of the plain archive,
//! and are not on the disk: a chunk that was changed, moved, or is missing can't be opened.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use shadow_checkpoint::archive::{self, Facts};
use zeroize::Zeroizing;

use crate::store::remove;

/// Plain bytes of a chunk. So much is in memory for each archive that is written or read.
const CHUNK: u64 = 256 << 10;
/// What a sealed chunk has on top of that: 2 MB for an archive of 32 GB.
const TAG: u64 = 16;

/// An archive. One that was written here goes with this.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Kubelet,
    /// Sealed, unless that is off.
    Afar(Option<Arc<Seal>>),
}

impl Drop for Archive {
    /// Who still reads it has it open.
    fn drop(&mut self) {
        match self.kind {
            Kind::Kubelet => {}
            Kind::Afar(_) => remove(&self.path),
        }
    }
}

impl Archive {
    /// One that the kubelet has written: it stays as it is.
    pub(crate) fn of_kubelet(path: PathBuf) -> Self {
        Self { path, kind: Kind::Kubelet }
    }

    /// A new one. It is open before anything else happens: no writer that comes late makes it again.
    pub(crate) fn create(path: PathBuf, plain: bool) -> io::Result<(Self, Writer)> {
        let seal = if plain { None } else { Some(Arc::new(Seal::new()?)) };
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&path)?;
        let writer = Writer { file, seal: seal.clone(), number: 0, chunk: Vec::new() };
        Ok((Self { path, kind: Kind::Afar(seal) }, writer))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// To read it; it has `size` plain bytes. Blocking.
    pub(crate) fn open(&self, size: u64) -> io::Result<Reader> {
        let seal = match &self.kind {
            Kind::Kubelet => None,
            Kind::Afar(seal) => seal.clone(),
        };
        Ok(Reader { file: File::open(&self.path)?, seal, size, at: 0, held: None })
    }

    /// What it says of itself. Blocking.
    pub(crate) fn facts(&self, size: u64) -> Result<Facts, archive::Error> {
        match self.kind {
            Kind::Kubelet => archive::facts(&self.path),
            Kind::Afar(_) => {
                let name = self.path.display().to_string();
                match self.open(size) {
                    Ok(reader) => archive::facts_of(&name, reader),
                    Err(source) => Err(archive::Error::Read { archive: name, source }),
                }
            }
        }
    }
}

/// A key. The bytes that it was made of are wiped; what `ring` makes of them is not, and is freed with
/// this.
struct Seal(LessSafeKey);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(hidden)")
    }
}

impl Seal {
    fn new() -> io::Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        let made = SystemRandom::new().fill(key.as_mut_slice());
        let made = made.and_then(|()| UnboundKey::new(&AES_256_GCM, key.as_slice()));
        made.map(|key| Self(LessSafeKey::new(key)))
            .map_err(|_| io::Error::other("there is no randomness for a key"))
    }

    fn nonce(number: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn close(&self, number: u64, chunk: &mut Vec<u8>) -> io::Result<()> {
        let sealed = self.0.seal_in_place_append_tag(Self::nonce(number), Aad::empty(), chunk);
        sealed.map_err(|_| io::Error::other("it can't be sealed"))
    }

    /// Leaves the plain bytes in `chunk`.
    fn open(&self, number: u64, chunk: &mut Vec<u8>) -> io::Result<()> {
        let opened = self.0.open_in_place(Self::nonce(number), Aad::empty(), chunk);
        let plain = opened.map(|plain| plain.len()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, "it was changed on the staging disk")
        })?;
        chunk.truncate(plain);
        Ok(())
    }
}

/// Writes an archive, from its beginning to its end.
pub(crate) struct Writer {
    file: File,
    seal: Option<Arc<Seal>>,
    number: u64,
    chunk: Vec<u8>,
}

impl Writer {
    pub(crate) fn write(&mut self, mut piece: &[u8]) -> io::Result<()> {
        if self.seal.is_none() {
            return self.file.write_all(piece);
        }
        while !piece.is_empty() {
            let room = usize_of(CHUNK) - self.chunk.len();
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.chunk.extend_from_slice(now);
            if now.len() == room {
                self.flush()?;
            }
            piece = later;
        }
        Ok(())
    }

    pub(crate) fn end(mut self) -> io::Result<()> {
        if self.chunk.is_empty() { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(seal) = &self.seal {
            seal.close(self.number, &mut self.chunk)?;
        }
        self.file.write_all(&self.chunk)?;
        self.chunk.clear();
        self.number += 1;
        Ok(())
    }
}

/// The plain archive.
pub(crate) struct Reader {
    file: File,
    seal: Option<Arc<Seal>>,
    size: u64,
    at: u64,
    /// The chunk that was read last.
    held: Option<(u64, Bytes)>,
}

impl Reader {
    /// The rest of the chunk at which it stands; nothing at the end.
    fn rest(&mut self) -> io::Result<Bytes> {
        if self.at >= self.size {
            return Ok(Bytes::new());
        }
        let number = self.at / CHUNK;
        let chunk = match self.held.take() {
            Some((held, chunk)) if held == number => chunk,
            _ => self.chunk(number)?,
        };
        self.held = Some((number, chunk.clone()));
        Ok(chunk.slice(usize_of(self.at % CHUNK)..))
    }

    fn chunk(&self, number: u64) -> io::Result<Bytes> {
        let tag = if self.seal.is_some() { TAG } else { 0 };
        let plain = CHUNK.min(self.size - number * CHUNK);
        let mut chunk = vec![0; usize_of(plain + tag)];
        self.file.read_exact_at(&mut chunk, number * (CHUNK + tag))?;
        if let Some(seal) = &self.seal {
            seal.open(number, &mut chunk)?;
        }
        Ok(chunk.into())
    }

    /// All of it, in pieces.
    pub(crate) fn pieces(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut reader| async move {
            let read = tokio::task::spawn_blocking(move || {
                let piece = reader.rest()?;
                reader.at += piece.len() as u64;
                reader.held = None;
                Ok((!piece.is_empty()).then_some((piece, reader)))
            });
            read.await.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()))
        })
    }
}

impl Read for Reader {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let rest = self.rest()?;
        let length = rest.len().min(room.len());
        room[..length].copy_from_slice(&rest[..length]);
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Of what is no longer than a chunk and its tag.
fn usize_of(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn bytes(length: u64) -> Vec<u8> {
        (0..length).map(|at| (at / 7 % 251) as u8).collect()
    }

    /// Written in pieces of `piece` bytes.
    fn written(folder: &Path, plain: bool, content: &[u8], piece: usize) -> Archive {
        let (archive, mut writer) = Archive::create(folder.join("a.tar"), plain).unwrap();
        content.chunks(piece).for_each(|piece| writer.write(piece).unwrap());
        writer.end().unwrap();
        archive
    }

    fn read(archive: &Archive, size: u64) -> io::Result<Vec<u8>> {
        let mut found = Vec::new();
        archive.open(size)?.read_to_end(&mut found).map(|_| found)
    }

    #[test]
    fn what_was_written_is_read_whatever_its_length() {
        let folder = tempfile::tempdir().unwrap();
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5] {
            let content = bytes(size);
            for (plain, piece) in [(true, 4096), (false, 4096), (false, 1 << 20), (false, 65_537)] {
                let archive = written(folder.path(), plain, &content, piece);
                let on_disk = archive.path().metadata().unwrap().len();
                let tags = if plain { 0 } else { size.div_ceil(CHUNK) * TAG };
                assert_eq!(on_disk, size + tags, "{size} bytes");
                assert!(read(&archive, size).unwrap() == content, "{size} bytes");
            }
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "it goes with its archive");
    }

    #[test]
    fn any_place_can_be_read_first() {
        let folder = tempfile::tempdir().unwrap();
        let size = 3 * CHUNK + 1000;
        let content = bytes(size);
        let archive = written(folder.path(), false, &content, 65_536);
        let (mut reader, mut plain) = (archive.open(size).unwrap(), Cursor::new(&content));
        let at = i64::try_from(CHUNK).unwrap();
        for to in [
            SeekFrom::End(0),
            SeekFrom::Start(2 * CHUNK - 3),
            SeekFrom::Current(-at),
            SeekFrom::End(-1),
            SeekFrom::Start(0),
            SeekFrom::Start(size + 7),
            SeekFrom::Current(at),
            SeekFrom::End(-at - 1001),
        ] {
            assert_eq!(reader.seek(to).unwrap(), plain.seek(to).unwrap(), "{to:?}");
            let (mut found, mut wanted) = (Vec::new(), Vec::new());
            reader.by_ref().take(5000).read_to_end(&mut found).unwrap();
            plain.by_ref().take(5000).read_to_end(&mut wanted).unwrap();
            assert!(found == wanted, "{to:?}");
        }
        assert!(reader.seek(SeekFrom::Current(i64::MIN)).is_err());
    }

    #[test]
    fn what_was_done_to_it_on_the_disk_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let size = 3 * CHUNK;
        let archive = written(folder.path(), false, &bytes(size), 65_536);
        let good = std::fs::read(archive.path()).unwrap();
        let sealed = usize_of(CHUNK + TAG);
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bad = good.clone();
            change(&mut bad);
            std::fs::write(archive.path(), bad).unwrap();
            read(&archive, size).map(|_| ()).map_err(|error| error.kind())
        };
        for at in [0, sealed - 1, sealed, good.len() / 2, good.len() - 1] {
            let flipped = changed(&|bad| bad[at] ^= 1);
            assert_eq!(flipped, Err(io::ErrorKind::InvalidData), "byte {at}");
        }
        let swapped = changed(&|bad| bad.rotate_left(sealed));
        assert_eq!(swapped, Err(io::ErrorKind::InvalidData));
        let repeated = changed(&|bad| bad.copy_within(..sealed, sealed));
        assert_eq!(repeated, Err(io::ErrorKind::InvalidData));
        for left in [0, 1, sealed, 2 * sealed, good.len() - 1] {
            let cut = changed(&|bad| bad.truncate(left));
            assert_eq!(cut, Err(io::ErrorKind::UnexpectedEof), "{left} bytes");
        }
        assert_eq!(changed(&|_| ()), Ok(()));
        // Nor is it another's, of the same content.
        let elsewhere = tempfile::tempdir().unwrap();
        let another = written(elsewhere.path(), false, &bytes(size), 65_536);
        std::fs::copy(another.path(), archive.path()).unwrap();
        assert!(read(&archive, size).is_err(), "each has a key of its own");
    }

    #[test]
    fn a_key_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let archive = written(folder.path(), false, b"abc", 3);
        let shown = format!("{archive:?}");
        assert!(shown.contains("Seal(hidden)"), "{shown}");
    }
}
