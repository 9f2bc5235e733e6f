/*
 * The way into a spool that belongs to its own user: set-user-id and set-group-id to that user, in
 * place of qmail-queue. It cleans everything that a caller hands to a program, becomes that user
 * for good, and runs the Python program, which alone looks at the mail. It reads nothing.
 *
 * Compiled by `picoqmail init --system`, which fixes these at compile time:
 *   HOME_PATH, PYTHON_PATH, PROGRAM_PATH   absolute, owned by root all the way up
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

/* Exit codes of the qmail-queue interface. */
enum { HOME_TROUBLE = 61, BUG = 81 };
/* Explanations may go to the caller's descriptor 6, if he made a pipe there. */
enum { EXPLANATION = 6 };

static void stop(int code, const char *what)
{
    const char *name = "qmail-queue: cannot ";
    if (write(2, name, strlen(name)) < 0 || write(2, what, strlen(what)) < 0 || write(2, "\n", 1) < 0)
        _exit(code);
    _exit(code);
}

/* Give a closed standard descriptor something that cannot be read, so that no file of ours gets
 * its number; a closed 0 or 1 stays what it was for the caller: unreadable. */
static void settle_descriptors(void)
{
    struct stat status;
    int number;
    for (number = 0; number <= 2; number++) {
        if (fcntl(number, F_GETFD) >= 0)
            continue;
        if (open("/dev/null", O_WRONLY) != number)
            _exit(BUG); /* open gives the lowest free number, and all below are taken */
    }
    if (fstat(EXPLANATION, &status) < 0 || !S_ISFIFO(status.st_mode))
        close(EXPLANATION);
    if (syscall(SYS_close_range, 3U, (unsigned) EXPLANATION - 1, 0U) < 0
        || syscall(SYS_close_range, (unsigned) EXPLANATION + 1, ~0U, 0U) < 0) {
        /* A kernel before 5.9: as many as there can be. */
        long most = sysconf(_SC_OPEN_MAX), each;
        if (most < 0 || most > 1048576)
            most = 1048576;
        for (each = 3; each < most; each++)
            if (each != EXPLANATION)
                close((int) each);
    }
}

/* Nothing that the caller ignored, blocked or set ticking reaches the program. */
static void settle_signals(void)
{
    struct itimerval none;
    struct sigaction usual;
    sigset_t nothing;
    int number;
    memset(&none, 0, sizeof none);
    if (setitimer(ITIMER_REAL, &none, NULL) < 0 || setitimer(ITIMER_VIRTUAL, &none, NULL) < 0
        || setitimer(ITIMER_PROF, &none, NULL) < 0)
        stop(BUG, "stop the caller's timers");
    memset(&usual, 0, sizeof usual);
    usual.sa_handler = SIG_DFL;
    for (number = 1; number < NSIG; number++)
        if (sigaction(number, &usual, NULL) < 0 && errno != EINVAL)
            stop(BUG, "reset a signal");
    sigemptyset(&nothing);
    if (sigprocmask(SIG_SETMASK, &nothing, NULL) < 0)
        stop(BUG, "unblock signals");
}

/* What the caller lowered is raised as far as we may; no core file ever holds mail. */
static void settle_limits(void)
{
    static const int kinds[] = { RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_DATA, RLIMIT_CPU };
    struct rlimit limit;
    size_t each;
    for (each = 0; each < sizeof kinds / sizeof *kinds; each++)
        if (getrlimit(kinds[each], &limit) == 0) {
            limit.rlim_cur = limit.rlim_max;
            if (setrlimit(kinds[each], &limit) < 0)
                stop(BUG, "raise a limit");
        }
    limit.rlim_cur = limit.rlim_max = 0;
    if (setrlimit(RLIMIT_CORE, &limit) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        stop(BUG, "switch core files off");
}

/* Become the owner of the spool for good: the caller may not signal or trace what follows. */
static void become_owner(uid_t owner, gid_t group)
{
    if (setresgid(group, group, group) < 0 || setresuid(owner, owner, owner) < 0)
        stop(BUG, "become the owner of the spool");
    if (getuid() != owner || geteuid() != owner || getgid() != group || getegid() != group)
        stop(BUG, "become the owner of the spool");
}

int main(void)
{
    static char home[] = "PICOQMAIL_HOME=" HOME_PATH;
    static char path[] = "PATH=/usr/local/bin:/usr/bin:/bin";
    static char locale[] = "LC_ALL=C.UTF-8";
    static char caller[sizeof "PICOQMAIL_CALLER=" + 3 * sizeof(uid_t) + 1];
    static char python[] = PYTHON_PATH, isolated[] = "-I", no_site[] = "-S";
    static char program[] = PROGRAM_PATH, name[] = "qmail-queue";
    char *const arguments[] = { python, isolated, no_site, program, name, NULL };
    char *const environment[] = { home, path, locale, caller, NULL };

    settle_descriptors();
    if (geteuid() == 0 || getegid() == 0)
        stop(BUG, "run as root: this file must be set-id to the owner of the spool");
    settle_signals();
    settle_limits();
    umask(077);
    snprintf(caller, sizeof caller, "PICOQMAIL_CALLER=%lu", (unsigned long) getuid());
    become_owner(geteuid(), getegid());
    if (chdir(HOME_PATH) < 0)
        stop(HOME_TROUBLE, "enter the home " HOME_PATH);
    execve(python, arguments, environment);
    stop(BUG, "run " PYTHON_PATH "; run picoqmail init --system again");
    return BUG;
}
