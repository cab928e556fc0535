/*
 * Counters, several times a second. What the kernel can print without allocating anything is one sampler's business,
 * what takes a little memory (/proc/vmstat, /proc/net/netstat) another's: when that one gets stuck, this one goes on.
 * The files stay open, so that their buffers are there already.
 */
#include "guest.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define INTERVAL_NS 100000000L

struct source {
	const char *name, *path;
	int fd;
};

static struct source free_sources[] = {
	{ "meminfo", "/proc/meminfo", -1 },   { "nbd0", "/sys/block/nbd0/stat", -1 }, { "dev", "/proc/net/dev", -1 },
	{ "snmp", "/proc/net/snmp", -1 },     { "udp", "/proc/net/udp", -1 },	      { "stat", "/proc/stat", -1 },
	{ "rx_missed_errors", "/sys/class/net/vec0/statistics/rx_missed_errors", -1 },
	{ "rx_dropped", "/sys/class/net/vec0/statistics/rx_dropped", -1 },
	{ "softnet_stat", "/proc/net/softnet_stat", -1 },
	{ "testbed", "/proc/testbed", -1 }, { NULL, NULL, -1 },
};
static struct source costly_sources[] = {
	{ "vmstat", "/proc/vmstat", -1 }, { "netstat", "/proc/net/netstat", -1 }, { NULL, NULL, -1 },
};
static char text[64 << 10];

static void say_progress(void)
{
	unsigned long touches = 0, checked = 0, corrupt = 0, touching = 0;
	int length;

	for (unsigned long i = 0; i < progress->tasks; i++) {
		const struct task *task = &progress->task[i];

		touches += task->touches;
		checked += task->checked;
		corrupt += task->corrupt;
		touching += task->touching;
	}
	length = snprintf(text, sizeof text, "touches %lu\nchecked %lu\ncorrupt %lu\ntouching %lu\n", touches, checked,
			  corrupt, touching);
	length += snprintf(text + length, sizeof text - length,
			   "tasks %lu\nfinished %lu\nkilled %lu\nwrite_ns %lu\nread_ns %lu\n",
			   progress->tasks, progress->finished, progress->killed, progress->write_ns, progress->read_ns);
	for (unsigned long i = 0; i < progress->sockets; i++)
		length += snprintf(text + length, sizeof text - length, "received%lu %lu\n", i, progress->received[i]);
	record("progress", text, length);
}

static void say(struct source *sources)
{
	for (struct source *source = sources; source->name; source++) {
		size_t length = 0;
		ssize_t got;

		if (source->fd < 0)
			source->fd = open(source->path, O_RDONLY | O_CLOEXEC);
		while (length < sizeof text && (got = pread(source->fd, text + length, sizeof text - length, length)) > 0)
			length += got;
		if (length)
			record(source->name, text, length);
	}
}

static void run(const char *name, struct source *sources, void (*first)(void))
{
	struct timespec interval = { .tv_nsec = INTERVAL_NS };

	if (fork())
		return;
	stay(name);
	for (;;) {
		if (first)
			first();
		say(sources);
		nanosleep(&interval, NULL);
	}
}

/* sample: from now on; and once, what stays as it is. */
const char *start_samplers(char *arguments)
{
	static struct source constant[] = { { "zoneinfo", "/proc/zoneinfo", -1 },
					    { "version", "/proc/sys/kernel/osrelease", -1 },
					    { NULL, NULL, -1 } };

	(void)arguments;
	say(constant);
	run("sampler", free_sources, say_progress);
	run("sampler2", costly_sources, NULL);
	return NULL;
}

/* last: all of it once more. */
const char *sample_once(char *arguments)
{
	(void)arguments;
	say_progress();
	say(free_sources);
	say(costly_sources);
	return NULL;
}
