//! Two certificates: the operator's, which operator, Jobs and other agents check, read again when it has
//! been renewed; and the agent's own, which only the node's runtime checks. The key of the latter never
//! leaves the process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;
use std::{fs, io};

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
    written: Mutex<Written>,
    key: RwLock<Arc<CertifiedKey>>,
}

impl Certificates {
    /// From `tls.crt` and `tls.key` in `folder`.
    pub(crate) fn load(folder: &Path) -> Result<Self, String> {
        let written = Mutex::new(modified(folder));
        let key = RwLock::new(Arc::new(read(folder)?));
        Ok(Self { folder: folder.to_owned(), written, key })
    }

    /// Reads again what has changed. What can't be read leaves the old certificate in use.
    pub(crate) fn refresh(&self) {
        let now = modified(&self.folder);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written == now {
            return;
        }
        match read(&self.folder) {
            Ok(key) => {
                *self.key.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                *written = now;
                tracing::info!("the certificate was renewed");
            }
            Err(why) => tracing::warn!(why, "the old certificate stays in use"),
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.refresh();
        Some(self.key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// A listener's side of TLS.
pub(crate) fn server(keys: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_no_client_auth().with_cert_resolver(keys))
}

/// The agent's own certificate.
#[derive(Debug)]
pub(crate) struct Own(Arc<CertifiedKey>);

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl Own {
    /// A fresh one for `name`, which is `host:port`. In `trust` the runtime is told to believe it: there,
    /// in a folder of that name, and nowhere else.
    pub(crate) fn new(name: &str, trust: Option<&Path>) -> Result<Self, String> {
        let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let failed = |why: String| format!("make a certificate for {host}: {why}");
        let made = rcgen::generate_simple_self_signed([host.to_owned()])
            .map_err(|error| failed(error.to_string()))?;
        let private = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes())
            .map_err(|error| failed(error.to_string()))?;
        let signer = any_supported_type(&private).map_err(|error| failed(error.to_string()))?;
        if let Some(folder) = trust {
            believe(folder, name, &made.cert.pem())
                .map_err(|error| format!("write into {}: {error}", folder.display()))?;
        }
        Ok(Self(Arc::new(CertifiedKey::new(vec![made.cert.der().clone()], signer))))
    }
}

/// Beside the certificate, so that an agent knows what one before it has left.
const MARK: &str = "ms2m-agent";

fn believe(trust: &Path, name: &str, certificate: &str) -> io::Result<()> {
    for entry in fs::read_dir(trust)? {
        let folder = entry?.path();
        if folder.join(MARK).exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    let folder = trust.join(name);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(MARK), "")?;
    fs::write(folder.join("ca.crt"), certificate)
}

/// When each of the files was written.
type Written = [Option<SystemTime>; 2];

fn modified(folder: &Path) -> Written {
    ["tls.crt", "tls.key"]
        .map(|file| fs::metadata(folder.join(file)).and_then(|found| found.modified()).ok())
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
