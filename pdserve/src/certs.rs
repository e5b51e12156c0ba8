//! `pdserve certs`: a CA and the certificates of a cluster, one directory per role, in one command.
//!
//! Run again on the same directory it keeps the CA and issues everything else anew, so that certificates are replaced before they run
//! out; running processes take the new files over.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, value_parser};
use edge::{Authority, CA_FILE, CA_KEY_FILE, CERTIFICATE_FILE, Issued, KEY_FILE};
use types::Role;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Make the certificates of a cluster: a CA, and a directory per role for --cluster-tls-dir.
///
/// Examples:
///   pdserve certs --save-dir certs                                  ca, scheduler, prefill, decode
///   pdserve certs --save-dir certs --https-name llm.example.org     also https: a certificate for the public port
///   pdserve certs --save-dir certs                                  again: new certificates from the same CA
#[derive(Parser, Debug, Clone)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Where the directories ca, scheduler, prefill and decode go; a CA that is there already is used
    #[arg(long, value_name = "DIR", default_value = "certs")]
    save_dir: PathBuf,
    /// Days that the certificates are valid; the CA is for ten years
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Host name or address of the public port: also issue a certificate for HTTPS; may be given several times
    #[arg(long, value_name = "NAME")]
    https_name: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let valid = DAY * args.days;
    let (ca, made) = authority(&args.save_dir.join("ca"))?;
    for role in [Role::Scheduler, Role::Prefill, Role::Decode] {
        let issued = ca.issue_role(role, valid).with_context(|| format!("cannot issue a certificate for {role}"))?;
        save(&args.save_dir.join(role.to_string()), &ca, &issued)?;
    }
    if !args.https_name.is_empty() {
        let issued = ca.issue_server(args.https_name.clone(), valid);
        let issued = issued.with_context(|| format!("--https-name {}", args.https_name.join(" ")))?;
        save(&args.save_dir.join("https"), &ca, &issued)?;
    }
    print!("{}", advice(args, made));
    Ok(())
}

/// The CA of the directory, and whether it is a new one.
fn authority(dir: &Path) -> anyhow::Result<(Authority, bool)> {
    let (certificate, key) = (dir.join(CA_FILE), dir.join(CA_KEY_FILE));
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    if key.exists() {
        let ca = Authority::from_pem(read(&certificate)?, &read(&key)?);
        return Ok((ca.with_context(|| format!("{} is no key", key.display()))?, false));
    }
    let ca = Authority::new().context("cannot make a CA")?;
    ca.save_own(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    Ok((ca, true))
}

fn save(dir: &Path, ca: &Authority, issued: &Issued) -> anyhow::Result<()> {
    ca.save(issued, dir).with_context(|| format!("cannot write to {}", dir.display()))
}

fn advice(args: &Args, made: bool) -> String {
    let dir = args.save_dir.display();
    let ca = if made { "new CA" } else { "same CA as before" };
    let mut text = format!(
        "{ca}; certificates valid for {} days in {dir}\n\n  \
         each process     --cluster-tls-dir {dir}/scheduler, {dir}/prefill or {dir}/decode: its own role's directory, nothing else\n  \
         one machine      pdserve up --cluster-tls-dir {dir}\n  \
         keep away        {dir}/ca/{CA_KEY_FILE}: whoever has it can join the cluster; no process needs it\n",
        args.days
    );
    if !args.https_name.is_empty() {
        text += &format!(
            "  public port      --tls-cert {dir}/https/{CERTIFICATE_FILE} --tls-key {dir}/https/{KEY_FILE}; clients trust {dir}/ca/{CA_FILE}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use edge::{ClusterTls, ServerTls};

    use super::*;

    #[test]
    fn every_role_gets_what_it_needs_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args {
            save_dir: dir.path().to_owned(),
            days: 30,
            https_name: vec!["localhost".into(), "127.0.0.1".into()],
        };
        run(&args).unwrap();
        let path = |name: &str| dir.path().join(name);
        for role in [Role::Scheduler, Role::Prefill, Role::Decode] {
            ClusterTls::load(&path(&role.to_string()), role).unwrap();
            assert!(!path(&role.to_string()).join(CA_KEY_FILE).exists());
        }
        ServerTls::load(&path("https/tls.crt"), &path("https/tls.key")).unwrap();
        for key in ["ca/ca.key", "prefill/tls.key", "https/tls.key"] {
            let mode = fs::metadata(path(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        let read = |name: &str| fs::read_to_string(path(name)).unwrap();
        let before = (read("ca/ca.crt"), read("decode/tls.crt"));
        run(&args).unwrap();
        assert_eq!(read("ca/ca.crt"), before.0, "the CA stays");
        assert_ne!(read("decode/tls.crt"), before.1);
        ClusterTls::load(&path("decode"), Role::Decode).unwrap();
    }

    #[test]
    fn a_name_that_no_certificate_can_carry_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args { save_dir: dir.path().to_owned(), days: 1, https_name: vec!["müller".into()] };
        assert!(format!("{:#}", run(&args).unwrap_err()).contains("--https-name müller"));
    }
}
