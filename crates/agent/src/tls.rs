//! The agent's certificate, read again when the operator has renewed it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// See the module.
#[derive(Debug)]
pub(crate) struct Certificates {
    folder: PathBuf,
    trust: Option<PathBuf>,
    written: Mutex<Written>,
    key: RwLock<Arc<CertifiedKey>>,
}

impl Certificates {
    /// From `tls.crt`, `tls.key` and `ca.crt` in `folder`. The last is copied into `trust`.
    pub(crate) fn load(folder: &Path, trust: Option<&Path>) -> Result<Self, String> {
        let written = modified(folder);
        let key = RwLock::new(Arc::new(read(folder)?));
        let it = Self {
            folder: folder.to_owned(),
            trust: trust.map(Path::to_owned),
            written: Mutex::new(written),
            key,
        };
        it.spread_trust()?;
        Ok(it)
    }

    /// Reads again what has changed. What can't be read leaves the old certificate in use.
    pub(crate) fn refresh(&self) {
        let now = modified(&self.folder);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written == now {
            return;
        }
        match read(&self.folder).and_then(|key| self.spread_trust().map(|()| key)) {
            Ok(key) => {
                *self.key.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                *written = now;
                tracing::info!("the certificate was renewed");
            }
            Err(why) => tracing::warn!(why, "the old certificate stays in use"),
        }
    }

    /// A listener's side of TLS.
    pub(crate) fn server(self: Arc<Self>) -> Result<ServerConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        Ok(builder.with_no_client_auth().with_cert_resolver(self))
    }

    /// The runtime reads the folder anew for every pull.
    fn spread_trust(&self) -> Result<(), String> {
        let Some(trust) = &self.trust else { return Ok(()) };
        let (from, to) = (self.folder.join("ca.crt"), trust.join("ca.crt"));
        let part = trust.join("ca.part");
        std::fs::copy(&from, &part)
            .and_then(|_| std::fs::rename(&part, &to))
            .map_err(|error| format!("copy {} to {}: {error}", from.display(), to.display()))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.refresh();
        Some(self.key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// When each of the files was written: an authority may be renewed alone.
type Written = [Option<SystemTime>; 3];

fn modified(folder: &Path) -> Written {
    ["tls.crt", "tls.key", "ca.crt"]
        .map(|file| std::fs::metadata(folder.join(file)).and_then(|found| found.modified()).ok())
}

fn read(folder: &Path) -> Result<CertifiedKey, String> {
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let wrong = |file: &Path, why: String| format!("read {}: {why}", file.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&certificate)
        .map_err(|error| wrong(&certificate, error.to_string()))?
        .collect();
    let chain = chain.map_err(|error| wrong(&certificate, error.to_string()))?;
    let private =
        PrivateKeyDer::from_pem_file(&key).map_err(|error| wrong(&key, error.to_string()))?;
    let signer = any_supported_type(&private).map_err(|error| wrong(&key, error.to_string()))?;
    let pair = CertifiedKey::new(chain, signer);
    pair.keys_match().map_err(|error| wrong(&key, error.to_string()))?;
    Ok(pair)
}
