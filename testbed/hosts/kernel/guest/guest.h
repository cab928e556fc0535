/*
 * The guest's init: what stands in the client's place inside User Mode Linux.
 *
 * It obeys lines that come in on a terminal of its own (see init.c) and answers with records: "NAME LENGTH\n", then
 * LENGTH bytes. Whatever has to go on while memory is used up is locked into memory and allocates nothing.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>

#define PAGE 4096
#define MOST_TASKS 1024
#define MOST_SOCKETS 1100
#define MOST_BALLOONS 64

struct task {
	volatile unsigned long touches, checked, corrupt, touching;
};

/* What all processes write and the sampler reads; shared and locked, so that neither needs the kernel for it. */
struct progress {
	volatile unsigned long tasks, finished, killed, write_ns, read_ns;
	volatile unsigned long sockets, received[MOST_SOCKETS];
	volatile unsigned long taken[MOST_BALLOONS];
	struct task task[MOST_TASKS];
};

extern struct progress *progress;

/* records.c */
extern int control;
int open_control(const char *path);
void record(const char *name, const char *text, size_t length);
void event(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *reason(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What a line that is carried out has to tell, if anything. */
extern char result[64];

/* Each carries out one line; NULL when it is done, else why not. */
const char *load_module(char *arguments);
const char *set_sysctl(char *arguments);
const char *read_file(char *arguments);
const char *bring_up(char *arguments);
const char *take_down(char *arguments);
const char *add_neighbour(char *arguments);
const char *open_socket(char *arguments);
const char *connect_swap(char *arguments);
const char *disconnect_swap(char *arguments);
const char *start_samplers(char *arguments);
const char *sample_once(char *arguments);
const char *start_workload(char *arguments);
const char *drain_sockets(char *arguments);
const char *stop_reading(char *arguments);
const char *read_again(char *arguments);
const char *inflate(char *arguments);
const char *deflate(char *arguments);

/* netlink.c: an NBD device, whose timeouts are in seconds, 0 for none. */
struct device {
	unsigned long bytes, timeout, dead_conn_timeout;
	unsigned flags;
};

int nbd_connect(const struct device *device, int fd);
int nbd_replace(int fd);
int nbd_disconnect(void);

/* init.c */
void set_oom_score_adj(const char *value);
void stay(const char *name);
void work_as(const char *name);

#endif
