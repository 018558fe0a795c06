//! `blockctl secrets …`

use super::{Context, or_dash};
use crate::{
    cli::secrets::SecretsCommand,
    failure::{EXIT_DONE, EXIT_FAILED, Failure},
    table::{Facts, Table},
};
use blockd_api::{
    format_time,
    secrets::{CheckSecret, SecretInUse, SecretProviders, SecretPurpose, VaultState},
};

pub async fn run(context: &Context<'_>, command: SecretsCommand) -> Result<u8, Failure> {
    let Context { client, output } = context;
    match command {
        SecretsCommand::List => {
            let list = client.list_secrets().await?.references;
            match output.is_json() {
                true => output.document(&list),
                false if list.is_empty() => {
                    output.note("No credentials refer to secrets elsewhere; see `blockctl credentials create --help`.");
                    Ok(())
                }
                false => output.table(&table(&list)),
            }?;
        }
        SecretsCommand::Check(args) => {
            let checked = client.check_secret(&CheckSecret { reference: args.reference }).await?;
            let version = checked.version.map(|version| format!(", version {version}")).unwrap_or_default();
            match output.is_json() {
                true => output.document(&checked),
                false => output.line(format!("blockd can have {}{version}", checked.reference)),
            }?;
        }
        SecretsCommand::Status => {
            let found = client.secret_providers().await?;
            match output.is_json() {
                true => output.document(&found),
                false => output.raw(facts(&found).render().as_bytes()),
            }?;
            if found.vault.is_some_and(|vault| vault.state != VaultState::Ready) {
                return Ok(EXIT_FAILED);
            }
        }
    }
    Ok(EXIT_DONE)
}

fn table(list: &[SecretInUse]) -> Table {
    let mut table = Table::new(&["SECRET", "USED BY", "RESOLVABLE", "VERSION", "WHY NOT"]);
    for one in list {
        let uses: Vec<String> = one
            .used_by
            .iter()
            .map(|used| {
                let purpose = match used.purpose {
                    SecretPurpose::StoreKey => "store key",
                    SecretPurpose::EncryptionPassphrase => "passphrase",
                };
                format!("{} ({purpose})", used.credential)
            })
            .collect();
        table.row(vec![
            one.reference.to_string(),
            uses.join(", "),
            one.resolvable.to_string(),
            or_dash(one.version),
            or_dash(one.error.as_ref()),
        ]);
    }
    table
}

fn facts(found: &SecretProviders) -> Facts {
    let mut facts = Facts::default();
    match &found.vault {
        None => {
            facts.add("Vault", "not configured");
        }
        Some(vault) => {
            let state = match vault.state {
                VaultState::Ready => "ready",
                VaultState::Sealed => "sealed",
                VaultState::Unreachable => "unreachable",
                VaultState::Refused => "refused",
                _ => "failed",
            };
            facts.add("Vault", &vault.address).add("State", state);
            for (name, value) in [
                ("Reason", vault.error.clone()),
                ("Version", vault.version.clone()),
                ("Namespace", vault.namespace.clone()),
                ("Authentication", Some(vault.auth.clone())),
                ("Token valid until", vault.token_valid_until.map(format_time)),
                ("Token renewable", vault.token_renewable.map(|yes| yes.to_string())),
            ] {
                if let Some(value) = value {
                    facts.add(name, value);
                }
            }
        }
    }
    facts
        .add("systemd credentials", or_dash(found.systemd_dir.as_ref().map(|dir| dir.display())))
        .add("Files below", found.file_dir.display())
        .add("Used without asking, at most (s)", found.cache_s);
    facts
}
