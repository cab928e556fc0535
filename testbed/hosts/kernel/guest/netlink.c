/*
 * What the nbd driver is told by generic netlink (linux/nbd-netlink.h), which unlike its ioctls can have a dead
 * connection replaced by another: requests that were under way are then sent once more.
 */
#include "guest.h"

#include <errno.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct message {
	struct nlmsghdr head;
	struct genlmsghdr generic;
	char attributes[512];
};

static struct nlattr *attribute(struct message *message, int type)
{
	struct nlattr *made = (void *)message + message->head.nlmsg_len;

	made->nla_type = type;
	made->nla_len = NLA_HDRLEN;
	message->head.nlmsg_len += NLA_HDRLEN;
	return made;
}

static void put(struct message *message, int type, const void *data, size_t length)
{
	struct nlattr *made = attribute(message, type);

	memcpy((char *)made + NLA_HDRLEN, data, length);
	made->nla_len += length;
	message->head.nlmsg_len += NLA_ALIGN(length);
}

static void put_number(struct message *message, int type, uint64_t number)
{
	put(message, type, &number, sizeof number);
}

static void put_socket(struct message *message, uint32_t fd)
{
	struct nlattr *sockets = attribute(message, NLA_F_NESTED | NBD_ATTR_SOCKETS);
	struct nlattr *item = attribute(message, NLA_F_NESTED | NBD_SOCK_ITEM);

	put(message, NBD_SOCK_FD, &fd, sizeof fd);
	item->nla_len += NLA_HDRLEN + sizeof fd;
	sockets->nla_len += item->nla_len;
}

static void begin(struct message *message, int family, int command)
{
	memset(message, 0, sizeof *message);
	message->head.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
	message->head.nlmsg_type = family;
	message->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	message->generic.cmd = command;
	message->generic.version = 1;
}

static uint16_t family_in(const struct nlmsghdr *head)
{
	const char *at = (const char *)NLMSG_DATA(head) + GENL_HDRLEN, *end = (const char *)head + head->nlmsg_len;

	for (const struct nlattr *each; at < end; at += NLA_ALIGN(each->nla_len)) {
		each = (const void *)at;
		if (each->nla_type == CTRL_ATTR_FAMILY_ID)
			return *(const uint16_t *)(at + NLA_HDRLEN);
	}
	return 0;
}

/* Send it, and wait for its acknowledgement; returns 0 or -errno. The family that an answer names goes to `family`. */
static int exchange(struct message *message, uint16_t *family)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC), error = -errno;
	static char answers[8192] __attribute__((aligned(NLMSG_ALIGNTO)));
	ssize_t got = fd < 0 ? -1 : send(fd, message, message->head.nlmsg_len, 0);

	while (got >= 0 && (got = recv(fd, answers, sizeof answers, 0)) >= 0)
		for (struct nlmsghdr *head = (void *)answers; NLMSG_OK(head, got); head = NLMSG_NEXT(head, got)) {
			if (head->nlmsg_type == GENL_ID_CTRL)
				*family = family_in(head);
			if (head->nlmsg_type != NLMSG_ERROR)
				continue;
			close(fd);
			return ((struct nlmsgerr *)NLMSG_DATA(head))->error;
		}
	error = -errno;
	close(fd);
	return error;
}

static int nbd_family(void)
{
	static uint16_t family;
	struct message message;

	if (!family) {
		begin(&message, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
		put(&message, CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME, sizeof NBD_GENL_FAMILY_NAME);
		exchange(&message, &family);
	}
	return family;
}

static int tell_nbd(int command, const struct device *device, int fd)
{
	struct message message;
	uint32_t index = 0;
	uint16_t unused;

	begin(&message, nbd_family(), command);
	put(&message, NBD_ATTR_INDEX, &index, sizeof index);
	if (device) {
		put_number(&message, NBD_ATTR_SIZE_BYTES, device->bytes);
		put_number(&message, NBD_ATTR_BLOCK_SIZE_BYTES, PAGE);
		put_number(&message, NBD_ATTR_SERVER_FLAGS, device->flags);
		if (device->timeout)
			put_number(&message, NBD_ATTR_TIMEOUT, device->timeout);
		if (device->dead_conn_timeout)
			put_number(&message, NBD_ATTR_DEAD_CONN_TIMEOUT, device->dead_conn_timeout);
	}
	if (fd >= 0)
		put_socket(&message, fd);
	return exchange(&message, &unused);
}

/* Each returns 0 or -errno. */
int nbd_connect(const struct device *device, int fd)
{
	return tell_nbd(NBD_CMD_CONNECT, device, fd);
}

int nbd_replace(int fd)
{
	return tell_nbd(NBD_CMD_RECONFIGURE, NULL, fd);
}

int nbd_disconnect(void)
{
	return tell_nbd(NBD_CMD_DISCONNECT, NULL, -1);
}
