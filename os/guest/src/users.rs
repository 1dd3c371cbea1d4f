//! Reads OCI's `User` against the image's `/etc/passwd` and `/etc/group`. No I/O.
//!
//! Must never guess: a name that the image does not know is an error, never root.

/// Who the workload runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, `gid` included.
    pub groups: Vec<u32>,
    /// Home directory from the image, `/` when it has none.
    pub home: String,
    /// Login name when the image knows one.
    pub name: Option<String>,
}

/// Why a user can't be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("user {name:?} is not in the image's /etc/passwd: use a number or a name the image knows")]
    UnknownUser { name: String },
    #[error("group {name:?} is not in the image's /etc/group: use a number or a name the image knows")]
    UnknownGroup { name: String },
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("/");
        Some(Account { name, uid, gid, home })
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// Resolves `user`, `uid`, `user:group` or `uid:gid`; an empty text is root.
pub fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    // A name of digits wins over the number, as in every other implementation.
    let account = accounts(passwd)
        .find(|a| a.name == user)
        .or_else(|| accounts(passwd).find(|a| Some(a.uid) == number));
    let uid = match (&account, number) {
        (Some(account), _) => account.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(UserError::UnknownUser { name: user.to_owned() }),
    };
    let name = account.as_ref().map(|account| account.name.to_owned());
    let mut member = Vec::new();
    let gid = if let Some(wanted) = wanted_group.filter(|wanted| !wanted.is_empty()) {
        let known = groups(group).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
        let unknown = || UserError::UnknownGroup { name: wanted.to_owned() };
        known.or_else(|| wanted.parse().ok()).ok_or_else(unknown)?
    } else {
        // Only without an explicit group, as OCI runtimes do.
        if let Some(name) = &name {
            let mine = |members: &str| members.split(',').any(|member| member == name);
            member.extend(groups(group).filter(|(.., members)| mine(members)).map(|(_, gid, _)| gid));
        }
        account.as_ref().map_or(0, |account| account.gid)
    };
    if !member.contains(&gid) {
        member.insert(0, gid);
    }
    let home = account.map_or("/", |account| if account.home.is_empty() { "/" } else { account.home });
    Ok(User { uid, gid, groups: member, home: home.to_owned(), name })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/var/www:/usr/sbin/nologin\n\
                          broken line\n1000:x:7:8::/seven:\n";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:\nssl-cert:x:101:www-data,other\nlog:x:102:www-data\n";

    fn user(text: &str) -> User {
        resolve(text, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let found = user("www-data");
        assert_eq!((found.uid, found.gid, found.home.as_str()), (33, 33, "/var/www"));
        assert_eq!(found.groups, [33, 101, 102]);
    }

    #[test]
    fn an_explicit_group_replaces_all_groups() {
        assert_eq!(user("www-data:log").groups, [102]);
        assert_eq!(user("33:5").groups, [5]);
    }

    #[test]
    fn numbers_need_no_entry_in_the_image() {
        let found = user("4242:4343");
        assert_eq!((found.uid, found.gid, found.home.as_str(), found.name), (4242, 4343, "/", None));
    }

    #[test]
    fn nothing_means_root() {
        assert_eq!((user("").uid, user("").gid, user("").home.as_str()), (0, 0, "/root"));
    }

    #[test]
    fn a_number_without_group_takes_the_accounts_group() {
        assert_eq!(user("33").gid, 33);
        assert_eq!(user("99").gid, 0, "an unknown number has no group of its own");
    }

    #[test]
    fn a_name_made_of_digits_wins_over_the_number() {
        assert_eq!(user("1000").uid, 7);
    }

    #[test]
    fn an_unknown_name_is_refused_and_never_becomes_root() {
        let error = resolve("ghost", PASSWD, GROUP).unwrap_err();
        assert_eq!(
            error.to_string(),
            "user \"ghost\" is not in the image's /etc/passwd: use a number or a name the image knows"
        );
        let error = resolve("root:ghosts", PASSWD, GROUP).unwrap_err();
        assert!(error.to_string().starts_with("group \"ghosts\" is not in the image's /etc/group"));
    }
}
