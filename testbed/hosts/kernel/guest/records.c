/* Records to the host: each is one write, so that those of several processes never mix. */
#include "guest.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define MOST_TEXT (128 << 10)

int control = -1;
static char buffer[MOST_TEXT + 64];

int open_control(const char *path)
{
	struct termios raw;

	control = open(path, O_RDWR | O_NOCTTY);
	if (control < 0)
		return -1;
	if (tcgetattr(control, &raw) == 0) {
		cfmakeraw(&raw);
		tcsetattr(control, TCSANOW, &raw);
	}
	return 0;
}

void record(const char *name, const char *text, size_t length)
{
	int head;

	if (length > MOST_TEXT)
		length = MOST_TEXT;
	head = snprintf(buffer, 64, "%s %zu\n", name, length);
	memcpy(buffer + head, text, length);
	for (size_t done = 0, all = head + length; done < all;) {
		ssize_t written = write(control, buffer + done, all - done);

		if (written <= 0)
			return;
		done += written;
	}
}

void event(const char *name, const char *format, ...)
{
	char text[512];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	record(name, text, length < (int)sizeof text ? length : (int)sizeof text - 1);
}

const char *reason(const char *format, ...)
{
	static char text[256];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	return text;
}
