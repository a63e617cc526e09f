"""``imagetool``: make images, list them, look at them, fetch them."""

from smallstack.cli.image.target import IMAGE_SERVER
from smallstack.cli.tool import run_tool, tool

COMMANDS = {
    "add": ("smallstack.cli.image.add", "command", "make an image of a directory or a tar archive"),
    "build": ("smallstack.cli.image.build", "command", "build an image of a manifest"),
    "list": ("smallstack.cli.image.list_images", "command", "the names of all images"),
    "get": ("smallstack.cli.image.get", "command", "lay an image out as a directory"),
    "show": ("smallstack.cli.image.show", "command", "what is known of an image"),
    "mkdir": ("smallstack.cli.image.mkdir", "command", "make a directory for images"),
    "chown": ("smallstack.cli.image.directories", "chown_command", "give a directory to a group"),
    "rmdir": ("smallstack.cli.image.directories", "remove_command", "remove an empty directory"),
    "listdirs": ("smallstack.cli.image.listdirs", "command", "the directories of images"),
    "diff": ("smallstack.cli.image.diff", "command", "what differs between two images"),
    "patch-directory": (
        "smallstack.cli.image.patch_directory",
        "command",
        "bring a directory to an image",
    ),
    "tar": ("smallstack.cli.image.tar_image", "command", "an image as a tar archive"),
    "check": ("smallstack.cli.image.check", "command", "whether an image is there, and whole"),
    "usage": ("smallstack.cli.image.usage", "command", "what images take, and share"),
    "listunrefobj": (
        "smallstack.cli.image.unreferenced",
        "list_command",
        "objects that no image needs",
    ),
    "delunrefobj": ("smallstack.cli.image.unreferenced", "delete_command", "delete such objects"),
    "expire": ("smallstack.cli.image.expire", "command", "when an image goes by itself"),
    "change-image-expiration": (
        "smallstack.cli.image.expire",
        "command",
        "the same as expire",
    ),
    "get-image-expiration": ("smallstack.cli.image.expire", "command", "the same as expire"),
    "estimate-usage": (
        "smallstack.cli.image.estimate_usage",
        "command",
        "the disk that an image needs",
    ),
    "get-image-updates": (
        "smallstack.cli.image.updates",
        "command",
        "images as they come and go",
    ),
    "import-fs-tree": (
        "smallstack.cli.image.import_tree",
        "command",
        "an image of a tree on a web server",
    ),
    "import-objects": (
        "smallstack.cli.image.objects",
        "import_command",
        "objects from a web server",
    ),
    "test-bandwidth": (
        "smallstack.cli.image.objects",
        "bandwidth_command",
        "how fast bytes go there or come",
    ),
    "get-archive": (
        "smallstack.cli.image.archive",
        "get_command",
        "an image without its objects, as a file",
    ),
    "restore-archive": (
        "smallstack.cli.image.archive",
        "restore_command",
        "add the image in such a file",
    ),
    "delete": ("smallstack.cli.image.delete", "command", "delete an image for good"),
    "find-latest": (
        "smallstack.cli.image.find_latest",
        "command",
        "the newest image in a directory",
    ),
    "find-latest-image": (
        "smallstack.cli.image.find_latest",
        "command",
        "the same as find-latest",
    ),
}

group = tool(
    "imagetool",
    "Make images of directories and archives, list them, look at them, fetch them.",
    COMMANDS,
    IMAGE_SERVER,
)


def main() -> None:
    """The program."""
    run_tool(group)


if __name__ == "__main__":
    main()
