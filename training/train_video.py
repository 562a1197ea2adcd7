"""Make a video denoiser of a trained image denoiser, and train it on clips.

    accelerate launch training/train_video.py --config training/configs/video_avatars.yaml data.source=…
    accelerate launch training/train_video.py model.image=runs/my-images data.source=my-clips data.frames=16

Clips are GIFs, WebPs, video files or folders of frames, or a column of a Parquet file. Running the same command again
goes on from the newest checkpoint. The run leaves `pipeline/`, a `VideoPipeline`.
"""

from brickwork.training.commands.train import task_script
from brickwork.training.tasks.video import VideoTask

main = task_script(__file__, __doc__, VideoTask)

if __name__ == "__main__":
    raise SystemExit(main())
