/* Counts the words of its input and prints the ten that come most often. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct word {
	struct word *next;
	unsigned long count;
	char text[];
};

static struct word *table[1 << 12];
static size_t distinct;

static unsigned hash(const char *s)
{
	unsigned h = 2166136261u;

	while (*s)
		h = (h ^ (unsigned char)*s++) * 16777619u;
	return h % (sizeof(table) / sizeof(table[0]));
}

static void count(const char *text)
{
	struct word **at = &table[hash(text)], *w;

	for (w = *at; w; w = w->next) {
		if (!strcmp(w->text, text)) {
			w->count++;
			return;
		}
	}
	w = malloc(sizeof(*w) + strlen(text) + 1);
	if (!w) {
		perror("words");
		exit(1);
	}
	strcpy(w->text, text);
	w->count = 1;
	w->next = *at;
	*at = w;
	distinct++;
}

static int more(const void *a, const void *b)
{
	const struct word *x = *(struct word *const *)a, *y = *(struct word *const *)b;

	if (x->count != y->count)
		return x->count < y->count ? 1 : -1;
	return strcmp(x->text, y->text);
}

int main(void)
{
	char text[256];
	size_t n = 0, i, k = 0;
	struct word **all, *w;
	int c;

	while ((c = getchar()) != EOF) {
		if (isalnum(c) && n < sizeof(text) - 1) {
			text[n++] = (char)tolower(c);
			continue;
		}
		text[n] = 0;
		if (n)
			count(text);
		n = 0;
	}
	all = malloc((distinct + 1) * sizeof(*all));
	if (!all)
		return 1;
	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		for (w = table[i]; w; w = w->next)
			all[k++] = w;
	qsort(all, k, sizeof(*all), more);
	for (i = 0; i < k && i < 10; i++)
		printf("%8lu %s\n", all[i]->count, all[i]->text);
	return 0;
}
