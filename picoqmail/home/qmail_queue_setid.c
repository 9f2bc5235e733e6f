/*
 * The two set-id programs of a home for many users. Both clean everything that a caller hands to a
 * program, give up root's rights for good, and run a Python program, which alone looks at mail.
 * They read no input.
 *
 * bin/qmail-queue takes mail from users. It becomes the identity that can add to the spool and do
 * nothing else: the caller's own uid, and the group of the drop, in which nobody else is. It starts
 * in the caller's part of the drop, and that is all of the spool that it can reach. The group keeps
 * the caller out of the process: the kernel refuses ptrace(2) where a group differs.
 *
 * bin/qmail-start (STARTS_SENDER) is for bin/qmail-queue alone. It becomes the spool's owner, takes
 * the sender's lock, and runs the sender. It ends at once if the relay is down or the lock is taken.
 *
 * Set-user-id to root: a file that belongs to the spool's owner could be rewritten by that user, and
 * so by whatever once takes over the sender, which talks to the network; and everybody who sends
 * mail, root too, would run it. docs/security.md has more.
 *
 * Compiled by `picoqmail init --system`, or when the Debian package is built. Fixed at compile time:
 *   HOME_PATH, PYTHON_PATH, PACKAGES_PATH   absolute, in the hands of root all the way up
 *   SPOOL_PATH, SEND_PATH                   the spool, and picoqmail-send
 *   AGAIN                                   what root has to do where the installation is broken
 * and whom to become, which identify() alone knows, either
 *   OWNER_UID, OWNER_GID, OWNER_GROUPS      numbers (unsigned) of the spool's owner, and
 *   DROP_UID, DROP_GID                      the group of the drop, and the user for root's own mail; or
 *   OWNER_NAME, DROP_NAME                   the names of these two users, found in /etc/passwd at
 *                                           each start: a package is built before the host has them
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Exit codes of the qmail-queue interface, and its pipe for explanations. */
enum { DISK_TROUBLE = 53, HOME_TROUBLE = 61, BUG = 81, EXPLANATION = 6 };

/* Only to be called without rights: descriptor 2 is whatever the caller made it. */
static void stop(int code, const char *what)
{
    char line[400];
    int size = snprintf(line, sizeof line, "qmail-queue: %s\n", what);
    if (write(2, line, size < (int) sizeof line ? (size_t) size : sizeof line - 1) < 0)
        _exit(code);
    _exit(code);
}

/* A limit of the caller's must not strike the sender, which is started from here and works for
 * everybody: a sender that cannot write down what it has delivered would send it twice. Data are
 * bounded, so that an envelope without an end takes no more than that. True if all are enough. */
static int lift_limits(void)
{
    static const struct { int kind; rlim_t wanted, enough; } limits[] = {
        { RLIMIT_FSIZE, RLIM_INFINITY, RLIM_INFINITY }, { RLIMIT_AS, RLIM_INFINITY, RLIM_INFINITY },
        { RLIMIT_CPU, RLIM_INFINITY, RLIM_INFINITY },   { RLIMIT_NPROC, RLIM_INFINITY, 100 },
        { RLIMIT_LOCKS, RLIM_INFINITY, 100 },           { RLIMIT_RTTIME, RLIM_INFINITY, RLIM_INFINITY },
        { RLIMIT_RSS, RLIM_INFINITY, 0 },               { RLIMIT_SIGPENDING, 4096, 100 },
        { RLIMIT_MSGQUEUE, 819200, 0 },                 { RLIMIT_MEMLOCK, 8 << 20, 0 },
        { RLIMIT_NICE, 0, 0 },                          { RLIMIT_RTPRIO, 0, 0 },
        { RLIMIT_DATA, 1 << 30, 1 << 30 },              { RLIMIT_STACK, 8 << 20, 1 << 20 },
        { RLIMIT_NOFILE, 4096, 256 },
        { RLIMIT_CORE, 0, 0 }, /* no core file ever holds mail */
    };
    struct rlimit limit;
    size_t each;
    int suffice = 1;
    for (each = 0; each < sizeof limits / sizeof *limits; each++) {
        int kind = limits[each].kind;
        limit.rlim_cur = limit.rlim_max = limits[each].wanted;
        if (setrlimit((unsigned) kind, &limit) == 0)
            continue;
        /* A container may keep this right back even from root: then as far as it goes. */
        if (getrlimit((unsigned) kind, &limit) < 0 || limit.rlim_max < limits[each].enough)
            suffice = 0;
        limit.rlim_cur = limit.rlim_max;
        (void) setrlimit((unsigned) kind, &limit);
    }
    return suffice;
}

/* What else a process has from its caller. Where the kernel lacks one of these, or keeps it back even
 * from root, the caller cannot have changed it either, or the host wants it so. */
static void reset_inherited(void)
{
    enum { FOR_PROCESS = 1, NEW_SESSION_KEYRING = 1, USUAL_SLACK_NS = 50000 };
    static const struct sched_param no_priority;
    unsigned char everywhere[1024];
    int file;
    (void) sched_setscheduler(0, SCHED_OTHER, &no_priority);
    (void) setpriority(PRIO_PROCESS, 0, 0);
    (void) prctl(PR_SET_TIMERSLACK, (unsigned long) USUAL_SLACK_NS, 0L, 0L, 0L);
    (void) prctl(PR_SET_THP_DISABLE, 0L, 0L, 0L, 0L);
    (void) personality(PER_LINUX);
    (void) syscall(SYS_ioprio_set, FOR_PROCESS, 0, 0);
    (void) syscall(SYS_set_mempolicy, 0, NULL, 0UL);
    (void) syscall(SYS_keyctl, NEW_SESSION_KEYRING, NULL);
    memset(everywhere, 0xff, sizeof everywhere); /* the kernel takes what the host has and allows */
    (void) syscall(SYS_sched_setaffinity, 0, sizeof everywhere, everywhere);
    if ((file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC)) >= 0) {
        if (write(file, "0", 1) < 0) {
            /* Less than the caller's is refused in a container; then it stays what it is. */
        }
        close(file);
    }
}

/* Whom to become. */
struct identity {
    uid_t uid;
    gid_t gid;
    gid_t groups[64];
    size_t count;
};

#ifdef OWNER_NAME
/* Find a user and all groups of that user in the two files, as they are: this is done with rights,
 * so no NSS module is loaded. 0 if there is no such user. */
static int find_user(const char *name, struct identity *found)
{
    FILE *file;
    struct passwd *user = NULL;
    struct group *group;
    char **member;
    if ((file = fopen("/etc/passwd", "re")) != NULL) {
        while ((user = fgetpwent(file)) != NULL && strcmp(user->pw_name, name) != 0)
            ;
        fclose(file);
    }
    if (user == NULL)
        return 0;
    found->uid = user->pw_uid;
    found->gid = user->pw_gid;
    found->groups[0] = found->gid;
    found->count = 1;
    if ((file = fopen("/etc/group", "re")) != NULL) {
        while ((group = fgetgrent(file)) != NULL)
            for (member = group->gr_mem; *member != NULL; member++)
                if (strcmp(*member, name) == 0 && group->gr_gid != found->gid
                    && found->count < sizeof found->groups / sizeof *found->groups)
                    found->groups[found->count++] = group->gr_gid;
        fclose(file);
    }
    return 1;
}
#endif

/* Find the spool's owner, and the identity of the drop; 0 if there is none, or it would keep rights
 * of root's, or the two are not apart. */
static int identify(struct identity *owner, struct identity *drop)
{
    size_t each;
#ifdef OWNER_NAME
    if (!find_user(OWNER_NAME, owner) || !find_user(DROP_NAME, drop))
        return 0;
#else
    static const struct identity fixed = {
        OWNER_UID, OWNER_GID, { OWNER_GROUPS }, sizeof (gid_t[]) { OWNER_GROUPS } / sizeof (gid_t)
    };
    static const struct identity fixed_drop = { DROP_UID, DROP_GID, { 0 }, 0 };
    *owner = fixed;
    *drop = fixed_drop;
#endif
    drop->count = 0;
    for (each = 0; each < owner->count; each++)
        if (owner->groups[each] == 0 || owner->groups[each] == drop->gid)
            return 0;
    return owner->uid != 0 && owner->gid != 0 && drop->uid != 0 && drop->gid != 0
        && drop->uid != owner->uid && drop->gid != owner->gid;
}

/* Give up all rights of root's for good. `real_gid` may differ from the group: then the kernel takes
 * the program that is executed next for set-id, and hides its /proc/PID from the caller. */
static void become(const struct identity *whom, gid_t real_gid)
{
    if (setgroups(whom->count, whom->groups) < 0
        || setresgid(real_gid, whom->gid, whom->gid) < 0
        || setresuid(whom->uid, whom->uid, whom->uid) < 0)
        _exit(BUG);
    if (getuid() != whom->uid || geteuid() != whom->uid || getgid() != real_gid
        || getegid() != whom->gid || setuid(0) == 0 || seteuid(0) == 0)
        _exit(BUG);
}

#ifndef STARTS_SENDER
enum { DROP_MODE = 0750, PART_MODE = 0751, USER_MODE = 02770 };

/* Make what a user's part of the drop consists of, or make it right; 0 if that fails. The mode of the
 * part itself is set last, so that a part whose making was cut short is known. */
static int settle_part(int drop, int part, uid_t user, gid_t group)
{
    static const char *const names[] = { "tmp", "new", "users" };
    size_t each;
    for (each = 0; each < sizeof names / sizeof *names; each++) {
        int made, directory;
        if (mkdirat(part, names[each], 0700) < 0 && errno != EEXIST)
            return 0;
        directory = openat(part, names[each], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (directory < 0)
            return 0;
        made = fchown(directory, user, group) == 0 && fchmod(directory, USER_MODE) == 0
            && fsync(directory) == 0;
        close(directory);
        if (!made)
            return 0;
    }
    return fsync(part) == 0 && fsync(drop) == 0 && fchown(part, 0, group) == 0
        && fchmod(part, PART_MODE) == 0;
}

/* Go into the part of the drop that is the caller's, made when it is first needed. Nothing on the way
 * is taken for a directory of ours by its name alone: the spool belongs to a user who is not root.
 * Returns 0, or an exit code. */
static int enter_drop(uid_t caller, uid_t user, gid_t group)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    struct stat status;
    char name[24];
    int spool, drop = -1, part = -1, code = HOME_TROUBLE;
    snprintf(name, sizeof name, "%lu", (unsigned long) caller);
    spool = open(SPOOL_PATH, flags);
    if (spool < 0 || (drop = openat(spool, "drop", flags)) < 0 || fstat(drop, &status) < 0
        || status.st_uid != 0 || status.st_gid != group || (status.st_mode & 07777) != DROP_MODE)
        goto done;
    code = DISK_TROUBLE;
    if (mkdirat(drop, name, 0700) < 0 && errno != EEXIST)
        goto done;
    if ((part = openat(drop, name, flags)) < 0 || fstat(part, &status) < 0 || status.st_uid != 0)
        goto done;
    if ((status.st_gid != group || (status.st_mode & 07777) != PART_MODE)
        && !settle_part(drop, part, user, group))
        goto done;
    if (fchdir(part) == 0)
        code = 0;
done:
    if (part >= 0)
        close(part);
    if (drop >= 0)
        close(drop);
    if (spool >= 0)
        close(spool);
    return code;
}
#endif

static void close_from(int first, int last)
{
    if (syscall(SYS_close_range, (unsigned) first, (unsigned) last, 0U) == 0)
        return;
    /* A kernel before 5.9: one by one, as many as one process can have anywhere. */
    for (; first <= last && first < 1048576; first++)
        close(first);
}

#ifdef STARTS_SENDER
/* The sender outlives its caller, so it keeps nothing of what that has open. */
static void settle_descriptors(void)
{
    int number;
    close_from(0, ~0U >> 1);
    for (number = 0; number <= 2; number++)
        if (open("/dev/null", O_RDWR) != number)
            _exit(BUG); /* open gives the lowest free number, and all below are taken */
}
#else
/* Give a closed standard descriptor something that cannot be read, so that no file of ours gets
 * its number, and likewise a directory, for which Python would not even start. */
static void settle_descriptors(void)
{
    struct stat status;
    int number;
    for (number = 0; number <= 2; number++) {
        if (fstat(number, &status) == 0) {
            if (!S_ISDIR(status.st_mode))
                continue;
            close(number);
        }
        if (open("/dev/null", O_WRONLY) != number)
            _exit(BUG); /* as all below are taken, the lowest free number is this one */
    }
    if (fstat(EXPLANATION, &status) < 0 || !S_ISFIFO(status.st_mode))
        close(EXPLANATION);
    close_from(3, EXPLANATION - 1);
    close_from(EXPLANATION + 1, ~0U >> 1);
}
#endif

/* Nothing that the caller ignored, blocked or set ticking reaches the program; and a terminal
 * cannot stop it, which would hold the sender's lock for as long as the caller likes. */
static void settle_signals(void)
{
    struct itimerval none;
    struct sigaction action;
    sigset_t nothing;
    int number;
    memset(&none, 0, sizeof none);
    memset(&action, 0, sizeof action);
    if (setitimer(ITIMER_REAL, &none, NULL) < 0 || setitimer(ITIMER_VIRTUAL, &none, NULL) < 0
        || setitimer(ITIMER_PROF, &none, NULL) < 0)
        stop(BUG, "cannot stop the caller's timers");
    for (number = 1; number < NSIG; number++) {
        int stops = number == SIGTSTP || number == SIGTTIN || number == SIGTTOU;
        action.sa_handler = SIG_IGN; /* drops what is pending: unblocked, it would strike us */
        if (sigaction(number, &action, NULL) == 0 && !stops) {
            action.sa_handler = SIG_DFL;
            if (sigaction(number, &action, NULL) < 0)
                stop(BUG, "cannot reset a signal");
        }
    }
    sigemptyset(&nothing);
    if (sigprocmask(SIG_SETMASK, &nothing, NULL) < 0)
        stop(BUG, "cannot unblock signals");
}

#ifdef STARTS_SENDER
/* What the breaker says (picoqmail/spool/relay_down.py): a time further off is a clock that jumped. */
static int relay_is_down(void)
{
    enum { LIMIT_SECONDS = 600 };
    struct stat status;
    time_t now = time(NULL);
    return stat(SPOOL_PATH "/relay-down", &status) == 0 && now < status.st_mtime
        && status.st_mtime <= now + LIMIT_SECONDS;
}

int main(void)
{
    enum { LOCK = 3 };
    static char home[] = "PICOQMAIL_HOME=" HOME_PATH, path[] = "PATH=/usr/local/bin:/usr/bin:/bin";
    static char send[] = SEND_PATH, option[] = "--lock=3";
    char *arguments[] = { send, option, NULL }, *environment[] = { home, path, NULL };
    struct identity owner, drop;
    int lock, suffice;

    if (geteuid() != 0)
        return HOME_TROUBLE;
    suffice = lift_limits();
    reset_inherited();
    if (!identify(&owner, &drop))
        return HOME_TROUBLE;
    become(&owner, owner.gid);
    settle_descriptors();
    settle_signals();
    umask(077);
    /* Where limits cannot be raised, cron sends it: no caller can lower those of cron. */
    if (!suffice || chdir("/") < 0 || relay_is_down())
        return 0;
    /* The lowest number that is free is 3. The sender keeps the lock, so it is never free in between. */
    lock = open(SPOOL_PATH "/sender.lock", O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
    if (lock != LOCK || flock(lock, LOCK_EX | LOCK_NB) < 0)
        return 0;
    execve(send, arguments, environment);
    return BUG;
}
#else
int main(void)
{
    static char home[] = "PICOQMAIL_HOME=" HOME_PATH, path[] = "PATH=/usr/local/bin:/usr/bin:/bin";
    static char locale[] = "LC_ALL=C.UTF-8", here[] = "PICOQMAIL_DROP=.", caller[40];
    static char python[] = PYTHON_PATH, packages[] = PACKAGES_PATH, none[] = "", name[] = "qmail-queue";
    static char isolated[] = "-I", no_site[] = "-S", code[] = "-c", program[] =
        "import _imp, marshal, sys\n"
        "from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader\n"
        "sys.path.append(sys.argv[2] + '/picoqmail/merged')\n"
        "load = SourceFileLoader('picoqmail_queue', sys.path[-1] + '/picoqmail_queue.py')\n"
        "file = sys.modules[load.name] = type(sys)(load.name)\n"
        "file.__file__ = load.path\n"
        "try:\n"
        "    try:\n"
        "        data = load.get_data(load.path[:-2] + 'code')\n"
        "        key = int.from_bytes(MAGIC_NUMBER, 'little')\n"
        "        if _imp.source_hash(key, data[8:]) != data[:8]:\n"
        "            raise ValueError\n"
        "        code = marshal.loads(data[8:])\n"
        "    except Exception:\n"
        "        code = load.get_code(load.name)\n"
        "    exec(code, file.__dict__)\n"
        "    run_program = file.run_program\n"
        "except Exception:\n"
        "    sys.path.append(sys.argv[2])\n"
        "    try:\n"
        "        from picoqmail.cli.start import run_program\n"
        "        import picoqmail.cli.queue\n"
        "    except Exception as exc:\n"
        "        text = 'qmail-queue: cannot be loaded: %r; install picoqmail again'\n"
        "        print(text % exc, file=sys.stderr)\n"
        "        sys.exit(71)\n"
        "run_program('queue')";
    char *arguments[] = { python, isolated, no_site, code, program, none, packages, name, NULL };
    char *environment[] = { home, path, locale, here, caller, NULL };
    struct identity owner, drop, self;
    uid_t user = getuid();
    int trouble;

    if (geteuid() != 0)
        stop(HOME_TROUBLE, HOME_PATH "/bin/qmail-queue has lost its set-user-id bit, or was started"
             " where that does not count: a process with no_new_privs, a file system mounted nosuid");
    (void) lift_limits();
    reset_inherited();
    if (!identify(&owner, &drop)) {
        if (setuid(user) < 0)
            _exit(BUG);
        stop(HOME_TROUBLE, "the owner of the spool or the user of its drop is no user of this host, "
             "or has rights that it must not have; " AGAIN);
    }
    snprintf(caller, sizeof caller, "PICOQMAIL_CALLER=%lu", (unsigned long) user);
    /* Root's own mail is no reason to keep root's rights. */
    self = drop;
    if (user != 0)
        self.uid = user;
    trouble = enter_drop(user, self.uid, owner.gid);
    become(&self, getgid() == 0 ? self.gid : getgid());

    settle_descriptors();
    settle_signals();
    umask(027);
    if (trouble == DISK_TROUBLE)
        stop(trouble, "cannot make the directory for your mail below " SPOOL_PATH "/drop; is the disk full?");
    if (trouble)
        stop(trouble, SPOOL_PATH "/drop is not there, or not as init made it; " AGAIN);
    execve(python, arguments, environment);
    stop(BUG, "cannot run " PYTHON_PATH "; " AGAIN);
    return BUG;
}
#endif
