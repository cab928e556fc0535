/* The yardstick for floods: one frame, 1024 times to a sendmmsg(2), for some seconds.
 * Usage: sendmmsg IFNAME FRAME-IN-HEX SECONDS; prints "FRAMES SECONDS". Runs in the namespace it is started in. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 1024

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	static unsigned char frames[BATCH][16384];
	static struct mmsghdr messages[BATCH];
	static struct iovec vectors[BATCH];
	if (argc != 4 || strlen(argv[2]) / 2 > sizeof frames[0])
		return 2;
	size_t length = strlen(argv[2]) / 2;
	for (size_t i = 0; i < length; i++)
		sscanf(argv[2] + 2 * i, "%2hhx", &frames[0][i]);
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	int buffer = 16 << 20;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(argv[1])};
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address)) {
		perror(argv[1]);
		return 1;
	}
	for (int i = 0; i < BATCH; i++) {
		memcpy(frames[i], frames[0], length);
		vectors[i] = (struct iovec){frames[i], length};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
	}
	double start = now(), end = start + atof(argv[3]);
	unsigned long sent = 0;
	while (now() < end) {
		int done = sendmmsg(fd, messages, BATCH, MSG_DONTWAIT);
		if (done > 0)
			sent += (unsigned long)done;
		else if (errno != EAGAIN && errno != ENOBUFS) {
			perror("sendmmsg");
			return 1;
		}
	}
	printf("%lu %.6f\n", sent, now() - start);
	return 0;
}
