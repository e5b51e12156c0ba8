//! A certificate authority of our own: a cluster's certificates in one command, and those of tests.
//!
//! Its key is needed only to issue; no process of a cluster ever reads it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use types::Role;

use crate::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, role_name};

/// Lies apart from what processes get: only who issues reads it.
pub const CA_KEY_FILE: &str = "ca.key";

const NAME: &str = "pdserve cluster CA";
/// Clocks of machines differ.
const BACKDATED: Duration = Duration::from_secs(3600);
const CA_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// See the module.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

/// A certificate and its key, in PEM.
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// A name that no certificate can carry, or a key that is none.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IssueError(#[from] rcgen::Error);

impl Authority {
    /// A new CA, valid for ten years.
    ///
    /// # Errors
    /// No key can be made.
    pub fn new() -> Result<Self, IssueError> {
        let key = KeyPair::generate()?;
        let certificate = ca_params().self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(ca_params(), key), certificate_pem: certificate.pem() })
    }

    /// One that [`Authority::new`] made before.
    ///
    /// # Errors
    /// The key is no key.
    pub fn from_pem(certificate_pem: String, key_pem: &str) -> Result<Self, IssueError> {
        Ok(Self { issuer: Issuer::new(ca_params(), KeyPair::from_pem(key_pem)?), certificate_pem })
    }

    /// What peers must hold to believe in what is issued here.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate that says its holder has this role, of use only for what the role does.
    ///
    /// # Errors
    /// No key can be made.
    pub fn issue_role(&self, role: Role, valid: Duration) -> Result<Issued, IssueError> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let usages = match role {
            Role::Scheduler => vec![ClientAuth],
            Role::Prefill => vec![ServerAuth, ClientAuth],
            Role::Decode => vec![ServerAuth],
        };
        self.issue(vec![role_name(role).to_owned()], usages, valid)
    }

    /// A certificate for an HTTPS server under these names and addresses.
    ///
    /// # Errors
    /// A name that no certificate can carry.
    pub fn issue_server(&self, names: Vec<String>, valid: Duration) -> Result<Issued, IssueError> {
        self.issue(names, vec![ExtendedKeyUsagePurpose::ServerAuth], valid)
    }

    /// Writes what a process needs: the CA's certificate, its own and its key, which nobody else may read.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn save(&self, issued: &Issued, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        put(&directory.join(CA_FILE), &self.certificate_pem, 0o644)?;
        put(&directory.join(KEY_FILE), &issued.key_pem, 0o600)?;
        put(&directory.join(CERTIFICATE_FILE), &issued.certificate_pem, 0o644)
    }

    /// Writes the CA itself, its key beside its certificate.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn save_own(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        put(&directory.join(CA_FILE), &self.certificate_pem, 0o644)?;
        put(&directory.join(CA_KEY_FILE), &self.issuer.key().serialize_pem(), 0o600)
    }

    fn issue(
        &self,
        names: Vec<String>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        valid: Duration,
    ) -> Result<Issued, IssueError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.clone())?;
        params.distinguished_name = named(names.first().map_or("pdserve", String::as_str));
        params.extended_key_usages = usages;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate: Certificate = within(params, valid).signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

/// Whoever reads the file finds the old or the new one, whole.
fn put(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    within(params, CA_VALID)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid from a little before now; with no time at all, it has run out.
fn within(mut params: CertificateParams, valid: Duration) -> CertificateParams {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED - Duration::from_secs(1)).into();
    params.not_after = if valid.is_zero() { now - BACKDATED } else { now + valid }.into();
    params
}
