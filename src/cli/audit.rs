//! x
use super::exit::{Failure, Outcome};
use clap::Args;
/// x
#[derive(Args, Debug)]
pub(crate) struct AuditArgs {}
pub(crate) fn run(_: &AuditArgs, _: bool) -> Result<Outcome, Failure> {
    Ok(Outcome::Done)
}
