/* Comparing tables; see qcow2_extents.h. */
#include "qcow2_extents.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2_table.h"

enum { PIECE = 65536, STRIDE = 1024, MOST_TABLES = 512, OLD = 0, NEW = 1 };

/* Part of a view in a stretch of the disk: an L2 table, or a raw file. */
struct part {
    struct ss_qcow2 *image; /* NULL: raw */
    uint64_t table;         /* raw: its descriptor */
};

struct side {
    struct ss_view *view;
    uint32_t own; /* layers that the other does not have */
    uint32_t count;
    bool ended;   /* a layer ends before this stretch: zeros */
    struct part parts[MOST_TABLES];
};

struct search {
    struct side sides[2];
    struct ss_extents *out;
    uint8_t *pieces[2];
    bool empty[2]; /* the piece is zeros */
};

static int emit(struct ss_extents *out, uint64_t offset, uint64_t length, bool zero)
{
    if (out->count > 0) {
        struct ss_extent *last = &out->list[out->count - 1];
        if (last->zero == zero && last->offset + last->length == offset) {
            last->length += length;
            out->bytes += length;
            return 0;
        }
    }
    if (out->count == out->room) {
        uint64_t room = out->room == 0 ? 1024 : out->room * 2;
        struct ss_extent *list = realloc(out->list, room * sizeof *list);
        if (list == NULL)
            return -ENOMEM;
        out->list = list;
        out->room = room;
    }
    out->list[out->count++] = (struct ss_extent){offset, length, zero};
    out->bytes += length;
    return 0;
}

static bool zeros(const struct ss_run *run)
{
    return run->kind == SS_RUN_HOLE || run->kind == SS_RUN_ZERO;
}

static bool same(const struct ss_view *old, const struct ss_run *was, const struct ss_view *new,
                 const struct ss_run *is)
{
    const struct ss_layer *there = &old->layers[was->layer], *here = &new->layers[is->layer];
    return was->kind == is->kind && was->host == is->host && there->image == here->image &&
           there->fd == here->fd;
}

/* Looks both sides up, from `offset` up to `end`. */
static int look_up(struct search *search, uint64_t offset, uint64_t end)
{
    struct ss_view *old = search->sides[OLD].view, *new = search->sides[NEW].view;

    while (offset < end) {
        struct ss_run was = {offset, end - offset, 0, 0, SS_RUN_HOLE}, is;
        int rc = ss_view_map(new, offset, end - offset, &is);
        if (rc == 0 && offset < old->size)
            rc = ss_view_map(old, offset, is.length, &was);
        if (rc < 0)
            return rc;
        uint64_t length = was.length < is.length ? was.length : is.length;
        bool equal = (zeros(&was) && zeros(&is)) || (!zeros(&is) && same(old, &was, new, &is));
        if (!equal && (rc = emit(search->out, offset, length, zeros(&is))) < 0)
            return rc;
        offset += length;
    }
    return 0;
}

/* Does this entry show data in all of its cluster? */
static bool all_data(const struct ss_qcow2 *image, uint64_t entry, uint64_t bits)
{
    if ((entry & QCOW2_PACKED) != 0)
        return true;
    if ((entry & QCOW2_OFFSET) == 0 || (entry & QCOW2_OFFSET) % image->cluster_size != 0)
        return false;
    return image->extended ? bits == UINT32_MAX : (entry & QCOW2_ZERO) == 0;
}

static uint64_t place_of(uint64_t entry)
{
    return (entry & QCOW2_PACKED) != 0 ? entry & ~QCOW2_COPIED : entry & QCOW2_OFFSET;
}

/* One cluster whose entries differ. `was` is 0 where the old side has no table. */
static int cluster(struct search *search, struct ss_qcow2 *image, bool new_has_it,
                   const uint64_t was[2], const uint64_t is[2], uint64_t offset, uint64_t end)
{
    uint64_t stop = offset - offset % image->cluster_size + image->cluster_size;
    if (stop > end)
        stop = end;
    if (new_has_it && all_data(image, is[0], is[1]) && place_of(was[0]) != place_of(is[0]))
        return emit(search->out, offset, stop - offset, false);
    return look_up(search, offset, stop);
}

static int read_piece(struct search *search, const struct part *part, int side, uint64_t at,
                      uint64_t length)
{
    search->out->tables += at % part->image->cluster_size == 0;
    search->empty[side] = false;
    int64_t got = ss_read_at(part->image->fd, search->pieces[side], length, part->table + at);
    if (got < 0)
        return (int)got;
    return got == (int64_t)length ? 0 : -EIO;
}

/* Eight words at a time: is there anything in `is` that `was` does not have? */
static bool dull(const uint8_t *was, const uint8_t *is)
{
    uint64_t a[8], b[8], differs = 0;
    memcpy(a, was, sizeof a);
    memcpy(b, is, sizeof b);
    for (int i = 0; i < 8; i++)
        differs |= a[i] ^ b[i];
    return differs == 0;
}

/* The stretch [from, end) by the two tables of one image, of which either may be missing. */
static int tables(struct search *search, struct ss_qcow2 *image, const struct part *old,
                  const struct part *new, uint64_t from, uint64_t end)
{
    uint64_t covers = image->cluster_size << image->l2_bits;
    uint64_t first = from % covers >> image->cluster_bits;
    uint64_t last = ((end - 1) % covers >> image->cluster_bits) + 1;
    uint64_t start = from - from % covers;
    uint64_t size = image->entry_size, step = PIECE / size;
    const uint64_t copied = htobe64(QCOW2_COPIED);

    for (uint64_t base = first - first % step; base < last; base += step) {
        uint64_t count = image->cluster_size / size - base;
        if (count > step)
            count = step;
        for (int side = OLD; side <= NEW; side++) {
            const struct part *part = side == OLD ? old : new;
            int rc = 0;
            if (part != NULL)
                rc = read_piece(search, part, side, base * size, count * size);
            else if (!search->empty[side])
                memset(search->pieces[side], 0, PIECE);
            search->empty[side] = part == NULL;
            if (rc < 0)
                return rc;
        }
        uint64_t i = base < first ? first - base : 0;
        uint64_t stop = last - base < count ? last - base : count;
        while (i < stop) {
            const uint8_t *a = search->pieces[OLD] + i * size, *b = search->pieces[NEW] + i * size;
            /* Mostly nothing differs: the library's own comparison passes that fastest. */
            if (i * size % STRIDE == 0 && (stop - i) * size >= STRIDE &&
                memcmp(a, b, STRIDE) == 0) {
                i += STRIDE / size;
                continue;
            }
            if (i * size % 64 == 0 && (stop - i) * size >= 64 && dull(a, b)) {
                i += 64 / size;
                continue;
            }
            uint64_t was[2] = {0}, is[2] = {0};
            memcpy(was, a, size);
            memcpy(is, b, size);
            if (((was[0] ^ is[0]) & ~copied) != 0 || was[1] != is[1]) {
                uint64_t at = start + ((base + i) << image->cluster_bits);
                for (int j = 0; j < 2; j++) {
                    was[j] = be64toh(was[j]);
                    is[j] = be64toh(is[j]);
                }
                int rc = cluster(search, image, new != NULL, was, is, at < from ? from : at, end);
                if (rc < 0)
                    return rc;
            }
            i++;
        }
    }
    return 0;
}

/* The parts of one side at `offset`; `*end` comes down to where they change. */
static int collect(struct side *side, uint64_t offset, uint64_t *end)
{
    side->count = 0;
    side->ended = offset >= side->view->size;
    for (uint32_t i = 0; i < side->own && !side->ended; i++) {
        const struct ss_layer *layer = &side->view->layers[i];
        if (offset >= layer->size) {
            side->ended = true;
            break;
        }
        if (*end > layer->size)
            *end = layer->size;
        struct part part = {layer->image, (uint64_t)layer->fd};
        if (layer->image != NULL) {
            uint64_t covers = layer->image->cluster_size << layer->image->l2_bits;
            uint64_t index = offset / covers;
            int rc = index >= layer->l1_size
                         ? 0
                         : ss_qcow2_l2_offset(layer->image, layer->l1[index], &part.table);
            if (rc < 0) {
                side->view->failed = layer;
                return rc;
            }
            if (index >= layer->l1_size)
                part.table = 0;
            else if (*end > (index + 1) * covers)
                *end = (index + 1) * covers;
        }
        if (part.table == 0 && layer->image != NULL)
            continue;
        if (side->count == MOST_TABLES)
            return -EFBIG;
        side->parts[side->count++] = part;
    }
    return 0;
}

static bool same_part(const struct part *a, const struct part *b)
{
    return a->image == b->image && a->table == b->table;
}

static int stretch(struct search *search, uint64_t from, uint64_t end)
{
    struct side *old = &search->sides[OLD], *new = &search->sides[NEW];

    if (old->ended == new->ended)
        while (old->count > 0 && new->count > 0 &&
               same_part(&old->parts[old->count - 1], &new->parts[new->count - 1])) {
            old->count--;
            new->count--;
        }
    if (old->count == 0 && new->count == 0 && old->ended == new->ended)
        return 0;
    struct ss_qcow2 *image = new->count == 1   ? new->parts[0].image
                             : old->count == 1 ? old->parts[0].image
                                               : NULL;
    bool simple = old->ended == new->ended && image != NULL && old->count <= 1 &&
                  new->count <= 1 && (old->count == 0 || old->parts[0].image == image) &&
                  (new->count == 0 || new->parts[0].image == image);
    if (!simple)
        return look_up(search, from, end);
    return tables(search, image, old->count == 1 ? &old->parts[0] : NULL,
                  new->count == 1 ? &new->parts[0] : NULL, from, end);
}

static uint32_t common_layers(const struct ss_view *old, const struct ss_view *new)
{
    uint32_t count = 0;
    while (count < old->count && count < new->count) {
        const struct ss_layer *a = &old->layers[old->count - 1 - count];
        const struct ss_layer *b = &new->layers[new->count - 1 - count];
        if (a->image != b->image || a->fd != b->fd || a->l1 != b->l1 || a->size != b->size)
            break;
        count++;
    }
    return count;
}

int ss_extents_find(struct ss_view *old, struct ss_view *new, struct ss_extents *out)
{
    struct search *search = calloc(1, sizeof *search);
    int rc = 0;

    memset(out, 0, sizeof *out);
    if (search == NULL)
        return -ENOMEM;
    uint32_t common = common_layers(old, new);
    old->failed = new->failed = NULL;
    search->sides[OLD].view = old;
    search->sides[OLD].own = old->count - common;
    search->sides[NEW].view = new;
    search->sides[NEW].own = new->count - common;
    search->out = out;
    search->pieces[OLD] = malloc(PIECE);
    search->pieces[NEW] = malloc(PIECE);
    if (search->pieces[OLD] == NULL || search->pieces[NEW] == NULL)
        rc = -ENOMEM;
    for (uint64_t offset = 0; offset < new->size && rc == 0;) {
        uint64_t end = new->size;
        if (offset < old->size && end > old->size)
            end = old->size;
        rc = collect(&search->sides[OLD], offset, &end);
        if (rc == 0)
            rc = collect(&search->sides[NEW], offset, &end);
        if (rc == 0)
            rc = stretch(search, offset, end);
        offset = end;
    }
    free(search->pieces[OLD]);
    free(search->pieces[NEW]);
    free(search);
    return rc;
}

int ss_extents_dirty(struct ss_view *view, uint32_t bitmap, struct ss_extents *out)
{
    struct ss_qcow2 *image = view->layers[0].image;
    struct ss_run dirty = {0}, run;
    int rc;

    memset(out, 0, sizeof *out);
    if (image == NULL)
        return -EINVAL;
    while ((rc = ss_qcow2_dirty(image, bitmap, dirty.offset + dirty.length, &dirty)) > 0) {
        uint64_t end = dirty.offset + dirty.length;
        for (uint64_t offset = dirty.offset; offset < end; offset += run.length) {
            rc = ss_view_map(view, offset, end - offset, &run);
            if (rc == 0)
                rc = emit(out, offset, run.length, zeros(&run));
            if (rc < 0)
                return rc;
        }
    }
    if (rc < 0)
        view->failed = &view->layers[0];
    return rc;
}

void ss_extents_free(struct ss_extents *extents)
{
    free(extents->list);
    extents->list = NULL;
    extents->count = extents->room = 0;
}
