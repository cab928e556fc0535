/* The first process: mounts what it needs, then carries out the host's lines one by one and answers each. */
#include "guest.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <unistd.h>

struct progress *progress;
char result[64];

static const struct {
	const char *name;
	const char *(*carry_out)(char *arguments);
} commands[] = {
	{ "module", load_module },	{ "sysctl", set_sysctl },	 { "read", read_file },	 { "up", bring_up },
	{ "down", take_down },		{ "neighbour", add_neighbour },	 { "socket", open_socket },
	{ "swap", connect_swap },	{ "unswap", disconnect_swap },	 { "sample", start_samplers },
	{ "last", sample_once },	{ "workload", start_workload },	 { "drain", drain_sockets },
	{ "inflate", inflate },		{ "deflate", deflate },
	{ "stop_reading", stop_reading }, { "read_again", read_again },
};

void set_oom_score_adj(const char *value)
{
	FILE *file = fopen("/proc/self/oom_score_adj", "w");

	if (file) {
		fputs(value, file);
		fclose(file);
	}
}

/* Have the calling process stay in memory, whatever happens, and be known by its name. */
void stay(const char *name)
{
	set_oom_score_adj("-1000");
	prctl(PR_SET_NAME, name);
	mlockall(MCL_CURRENT | MCL_FUTURE);
}

/*
 * Have the calling process be one that may be killed for memory. What it uses of the program stays in memory, no more:
 * the stack and data that it never touches would be half of a small machine's memory where tasks are many.
 */
void work_as(const char *name)
{
	set_oom_score_adj("0");
	prctl(PR_SET_NAME, name);
	mlockall(MCL_CURRENT | MCL_ONFAULT);
}

static void carry_out(char *line)
{
	char *arguments = line + strcspn(line, " ");
	const char *failure = "no such command";

	*result = 0;
	if (*arguments)
		*arguments++ = 0;
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (!strcmp(commands[i].name, line))
			failure = commands[i].carry_out(arguments);
	if (failure)
		event("failed", "%s: %s", line, failure);
	else
		event("done", "%s", result);
}

static void end(void)
{
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

int main(void)
{
	char line[4096];
	size_t filled = 0;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (progress == MAP_FAILED || open_control("/dev/tty1")) {
		perror("guest");
		end();
	}
	stay("guest");
	event("booted", "%d", getpid());
	for (;;) {
		ssize_t got = read(control, line + filled, sizeof line - 1 - filled);
		char *newline;

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			end();
		filled += got;
		line[filled] = 0;
		while ((newline = strchr(line, '\n'))) {
			*newline = 0;
			if (!strcmp(line, "end"))
				end();
			carry_out(line);
			filled -= newline + 1 - line;
			memmove(line, newline + 1, filled + 1);
		}
		if (filled == sizeof line - 1)
			filled = 0;
	}
}
