/*
 * The way into a spool that belongs to a user of its own: bin/qmail-queue of a home for many users.
 * It becomes that user for good, cleans everything that a caller hands to a program, and runs the
 * Python program, which alone reads the mail. It reads nothing.
 *
 * Set-user-id to root, although it only ever wants to be the spool's owner. A file that belongs to
 * that owner could be rewritten by that owner. An attacker who took over the sender, which talks to
 * the network, could do so; and every user, root too, would then run it. See docs/security.md.
 * So the rights go first: nothing stands before drop() but what only root may lift.
 *
 * Compiled by `picoqmail init --system`, or when the Debian package is built. Fixed at compile time:
 *   HOME_PATH, PYTHON_PATH, PACKAGES_PATH   absolute, in the hands of root all the way up
 *   AGAIN                                   what root has to do where the installation is broken
 * and whom it becomes, which identify() alone knows, either
 *   OWNER_UID, OWNER_GID, OWNER_GROUPS      numbers (unsigned) of the spool's owner, or
 *   OWNER_NAME                              the owner's name, found in /etc/passwd at each start:
 *                                           a package is built before the host has that user
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
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

/* Exit codes of the qmail-queue interface, and its pipe for explanations. */
enum { HOME_TROUBLE = 61, BUG = 81, EXPLANATION = 6 };

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

/* Whom to become. */
struct identity {
    uid_t uid;
    gid_t gid;
    gid_t groups[64];
    size_t count;
};

/* Find the identity; 0 if there is none, or it would keep rights of root's. With OWNER_NAME this is
 * done with rights, so the two files are read as they are: no NSS module is loaded. */
static int identify(struct identity *found)
{
    size_t each;
#ifdef OWNER_NAME
    FILE *file;
    struct passwd *user = NULL;
    struct group *group;
    char **member;
    if ((file = fopen("/etc/passwd", "re")) != NULL) {
        while ((user = fgetpwent(file)) != NULL && strcmp(user->pw_name, OWNER_NAME) != 0)
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
                if (strcmp(*member, OWNER_NAME) == 0 && group->gr_gid != found->gid
                    && found->count < sizeof found->groups / sizeof *found->groups)
                    found->groups[found->count++] = group->gr_gid;
        fclose(file);
    }
#else
    static const struct identity fixed = {
        OWNER_UID, OWNER_GID, { OWNER_GROUPS }, sizeof (gid_t[]) { OWNER_GROUPS } / sizeof (gid_t)
    };
    *found = fixed;
#endif
    for (each = 0; each < found->count; each++)
        if (found->groups[each] == 0)
            return 0;
    return found->uid != 0 && found->gid != 0;
}

/* Become the spool's owner for good: the caller may not signal or trace what follows. */
static void drop(void)
{
    struct identity owner;
    if (!identify(&owner)) {
        if (setuid(getuid()) < 0)
            _exit(BUG);
        stop(HOME_TROUBLE, "the owner of the spool is no user of this host, or has rights of root's; "
             AGAIN);
    }
    if (setgroups(owner.count, owner.groups) < 0
        || setresgid(owner.gid, owner.gid, owner.gid) < 0
        || setresuid(owner.uid, owner.uid, owner.uid) < 0)
        _exit(BUG);
    if (getuid() != owner.uid || geteuid() != owner.uid || getgid() != owner.gid
        || getegid() != owner.gid || setuid(0) == 0 || setgid(0) == 0)
        _exit(BUG);
}

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
            _exit(BUG); /* open gives the lowest free number, and all below are taken */
    }
    if (fstat(EXPLANATION, &status) < 0 || !S_ISFIFO(status.st_mode))
        close(EXPLANATION);
    if (syscall(SYS_close_range, 3U, EXPLANATION - 1U, 0U) < 0
        || syscall(SYS_close_range, EXPLANATION + 1U, ~0U, 0U) < 0) {
        /* A kernel before 5.9: one by one, as many as one process can have anywhere. */
        for (number = 3; number < 1048576; number++)
            if (number != EXPLANATION)
                close(number);
    }
}

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

int main(void)
{
    static char home[] = "PICOQMAIL_HOME=" HOME_PATH, path[] = "PATH=/usr/local/bin:/usr/bin:/bin";
    static char locale[] = "LC_ALL=C.UTF-8", send_later[] = "PICOQMAIL_SEND=off", caller[40];
    static char python[] = PYTHON_PATH, packages[] = PACKAGES_PATH, none[] = "", name[] = "qmail-queue";
    static char isolated[] = "-I", no_site[] = "-S", code[] = "-c", program[] =
        "import sys; sys.path.append(sys.argv[2] + '/picoqmail/merged')\n"
        "try:\n"
        "    from picoqmail_queue import run_program\n"
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
    static const struct sched_param no_priority;
    char *arguments[] = { python, isolated, no_site, code, program, none, packages, name, NULL };
    char *environment[] = { home, path, locale, caller, NULL, NULL };

    if (geteuid() != 0)
        stop(HOME_TROUBLE, HOME_PATH "/bin/qmail-queue has lost its set-user-id bit, or was started"
             " where that does not count: a process with no_new_privs, a file system mounted nosuid");
    if (!lift_limits())
        environment[4] = send_later; /* cron sends it: nobody can lower cron's limits */
    (void) sched_setscheduler(0, SCHED_OTHER, &no_priority);
    (void) setpriority(PRIO_PROCESS, 0, 0);
    snprintf(caller, sizeof caller, "PICOQMAIL_CALLER=%lu", (unsigned long) getuid());
    drop();

    settle_descriptors();
    settle_signals();
    umask(077);
    if (chdir(HOME_PATH) < 0)
        stop(HOME_TROUBLE, "cannot enter the home " HOME_PATH);
    execve(python, arguments, environment);
    stop(BUG, "cannot run " PYTHON_PATH "; " AGAIN);
    return BUG;
}
