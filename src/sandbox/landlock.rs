//! Which files may be opened, and how.
//!
//! The kernel walks from the file up to the root and adds up what the folders on the way allow, so a rule on a folder also covers
//! what is made or mounted below it later. A folder that is removed and made again is another folder, without a rule.
//! Paths that are only looked at (`stat`, `O_PATH`) are not refused by it, and no descriptor from before is.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use rustix::fs::{FileType, fstat};

use super::Needs;

/// The newest rules that we know; an older kernel enforces those that it knows. Named and not asked of the kernel, so that what
/// is refused does not grow by itself.
const KNOWN: ABI = ABI::V6;

/// Of a folder that is read.
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});

/// Of a folder that is written to: plain files in one folder each.
const WRITE: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile});

/// Of a device.
const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});

/// Refuses to open anything else from here on.
pub(super) fn restrict(needs: &Needs) -> Result<String, String> {
    let net = match needs.has_network {
        // Rules on ports would not do: a server may name another one with each token.
        true => AccessNet::BindTcp.into(),
        false => AccessNet::from_all(KNOWN),
    };
    let enforce = || -> Result<_, RulesetError> {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(net)?
            .scope(Scope::from_all(KNOWN))?
            .create()?;
        for (files, rights) in [(&needs.read, READ), (&needs.write, WRITE), (&needs.devices, DEVICE)] {
            for file in files {
                let is_folder = fstat(file)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                // Of a file the kernel takes no rights that only folders have.
                let rights = if is_folder { rights } else { rights & AccessFs::from_file(KNOWN) };
                ruleset = ruleset.add_rule(PathBeneath::new(file, rights))?;
            }
        }
        ruleset.restrict_self()
    };
    let status = enforce().map_err(|error| error.to_string())?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotImplemented) => {
            Err("this kernel was built without it".to_owned())
        }
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            Err("it is switched off in this kernel".to_owned())
        }
        (RulesetStatus::NotEnforced, _) => Err("this kernel does not enforce it".to_owned()),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(format!("ABI {effective_abi}")),
        _ => Ok(String::new()),
    }
}
